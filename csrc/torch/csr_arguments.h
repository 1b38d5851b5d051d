// SPDX-License-Identifier: Apache-2.0
// CSR tensors to a CsrView, and findings to errors.
#pragma once
#include <limits>

#include "core/csr.h"
#include "torch/arguments.h"

namespace sparsecore::binding {

// What errors call the arrays of a matrix.
struct CsrNames {
  const char *crow = "crow_indices", *col = "col_indices", *values = "values";
  const char *rows = "out_features", *width = "k: in_features";
};

// crow_indices and col_indices alone.
inline CsrView csr_pattern(const Tensor& crow_indices, const Tensor& col_indices, int64_t k,
                           const CsrNames& names = {}) {
  check_array(crow_indices, 1, names.crow);
  check_array(col_indices, 1, names.col);
  const Dtype index = index_dtype(crow_indices, names.crow);
  SPARSECORE_REQUIRE(col_indices.scalar_type() == crow_indices.scalar_type(), names.col, ": dtype must be that of ",
                     names.crow, ", ", torch::headeronly::toString(crow_indices.scalar_type()), ", not ",
                     torch::headeronly::toString(col_indices.scalar_type()));
  SPARSECORE_REQUIRE(crow_indices.numel() >= 1, names.crow, ": must have ", names.rows, " + 1 elements, not 0");
  SPARSECORE_REQUIRE(k >= 0 && k <= std::numeric_limits<int32_t>::max(), names.width, " must be in [0, 2^31), not ", k);
  return {crow_indices.numel() - 1,
          k,
          col_indices.numel(),
          crow_indices.const_data_ptr(),
          col_indices.const_data_ptr(),
          nullptr,
          index,
          Dtype::f32};
}

inline void check_count(const Tensor& values, const CsrView& w, const CsrNames& names = {}) {
  check_array(values, 1, names.values);
  SPARSECORE_REQUIRE(w.nnz == values.numel(), names.values, ": must have one element per ", names.col, ", ", w.nnz,
                     ", not ", values.numel());
}

inline CsrView csr_view(const Tensor& crow_indices, const Tensor& col_indices, const Tensor& values, int64_t k) {
  CsrView w = csr_pattern(crow_indices, col_indices, k);
  check_count(values, w);
  w.value = float_dtype(values, "values");
  w.values = values.const_data_ptr();
  return w;
}

inline void raise(const CsrFinding& f, const CsrView& w, const CsrNames& names = {}) {
  SPARSECORE_REQUIRE(f.fault != CsrFault::crow_start, names.crow, ": must start with 0, not ", f.value);
  SPARSECORE_REQUIRE(f.fault != CsrFault::crow_end, names.crow, ": entry ", f.row, " is ", f.value, ", but nnz is ",
                     w.nnz);
  SPARSECORE_REQUIRE(f.fault != CsrFault::crow_falls, names.crow, ": must not fall, but entry ", f.row + 1, " is ",
                     f.value, " after ", w.offset(f.row));
  SPARSECORE_REQUIRE(f.fault != CsrFault::col_range, names.col, ": row ", f.row, " has column ", f.value,
                     ", outside [0, ", w.k, ")");
  SPARSECORE_REQUIRE(f.fault != CsrFault::col_order, names.col, ": columns of row ", f.row,
                     " must rise strictly, but column ", f.value, " is duplicated or out of order");
}

}  // namespace sparsecore::binding
