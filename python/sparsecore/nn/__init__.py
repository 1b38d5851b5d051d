# SPDX-License-Identifier: Apache-2.0
"""Modules over the ops: a linear layer with a sparse weight, and the conversion of a whole model."""

from sparsecore.nn.convert import LayerReport, Report, sparsify_
from sparsecore.nn.linear import SparseLinear
from sparsecore.nn.merge import merge_

__all__ = ["LayerReport", "Report", "SparseLinear", "merge_", "sparsify_"]
