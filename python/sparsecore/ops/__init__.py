# SPDX-License-Identifier: Apache-2.0
"""Every op, one import a line."""

from . import spmm_bitmap as spmm_bitmap
from . import spmm_csr as spmm_csr
