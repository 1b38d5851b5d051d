# SPDX-License-Identifier: Apache-2.0
"""Every op, one import a line."""

from . import bitmap_from_csr as bitmap_from_csr
from . import bitmap_from_dense as bitmap_from_dense
from . import bitmap_to_csr as bitmap_to_csr
from . import bitmap_to_dense as bitmap_to_dense
from . import kv_append as kv_append
from . import kv_attention as kv_attention
from . import kv_compress as kv_compress
from . import kv_decompress as kv_decompress
from . import nm_compress as nm_compress
from . import nm_to_dense as nm_to_dense
from . import spgemm as spgemm
from . import spmm_bitmap as spmm_bitmap
from . import spmm_csr as spmm_csr
from . import spmm_nm as spmm_nm
from . import spmm_nm_fused as spmm_nm_fused
