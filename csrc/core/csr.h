// SPDX-License-Identifier: Apache-2.0
// CSR, exactly torch's (and SciPy's with sorted indices):
//
//        columns 0 1 2 3          crow_indices [n + 1]  0 2 2 3
//   row 0       [a . b .]         col_indices  [nnz]    0 2 3
//   row 1       [. . . .]         values       [nnz]    a b c
//   row 2       [. . . c]
//
// Invariants: crow[0] = 0, crow[n] = nnz, crow never falls; the columns of a row rise strictly and
// lie in [0, k). Bytes: (n + 1 + nnz) * index + nnz * value.
//
// The arrays are untrusted. A kernel checks a row's offsets and columns in the pass that first reads
// them and stops at the first row that breaks an invariant, before it uses that row's columns.
#pragma once
#include <cstdint>

#include "core/dtype.h"

namespace sparsecore {

struct CsrView {
  int64_t n, k, nnz;
  const void* crow;  // [n + 1] of index
  const void* col;   // [nnz] of index
  const void* values;
  Dtype index;  // i32 or i64
  Dtype value;  // f32, bf16, f16; of a product f32, f64, c64, c128

  SPARSECORE_INLINE int64_t offset(int64_t row) const {
    return index == Dtype::i32 ? static_cast<const int32_t*>(crow)[row] : static_cast<const int64_t*>(crow)[row];
  }
  SPARSECORE_INLINE int64_t column(int64_t p) const {
    return index == Dtype::i32 ? static_cast<const int32_t*>(col)[p] : static_cast<const int64_t*>(col)[p];
  }
};

enum class CsrFault : int32_t { none, crow_start, crow_end, crow_falls, col_range, col_order };

struct CsrFinding {
  CsrFault fault = CsrFault::none;
  int64_t row = 0;
  int64_t value = 0;  // the offending offset or column
};

// rising: columns that fall or repeat are a fault as well.
SPARSECORE_INLINE CsrFinding csr_check_row(const CsrView& w, int64_t row, bool rising = true) {
  const int64_t begin = w.offset(row), end = w.offset(row + 1);
  if (begin < 0 || begin > end) return {CsrFault::crow_falls, row, end};
  if (end > w.nnz) return {CsrFault::crow_end, row, end};
  int64_t last = -1;
  for (int64_t p = begin; p < end; ++p) {
    const int64_t c = w.column(p);
    if (c < 0 || c >= w.k) return {CsrFault::col_range, row, c};
    if (rising && c <= last) return {CsrFault::col_order, row, c};
    last = c;
  }
  return {};
}

SPARSECORE_INLINE CsrFinding csr_check_ends(const CsrView& w) {
  if (w.offset(0) != 0) return {CsrFault::crow_start, 0, w.offset(0)};
  if (w.offset(w.n) != w.nnz) return {CsrFault::crow_end, w.n, w.offset(w.n)};
  return {};
}

}  // namespace sparsecore
