// SPDX-License-Identifier: Apache-2.0
// bitmap_to_csr: col_indices [nnz] of a bitmask, rising within a row. Values of CSR lie in the same order and
// crow_indices are row_offsets, so both stay what they are. The arrays are untrusted; nothing aliases.
#pragma once
#include "core/bitmap.h"
#include "cpu/kernel_table.h"

namespace sparsecore::bitmap_to_csr {

struct Args {
  BitmapView pattern;  // its values and scales are not read
  void* col;           // [nnz] of index
  Dtype index;         // i32, i64
};

struct Kernel {
  const char* name;
  cpu::Isa isa;
  // Writes the columns of rows [begin, end) and none beside them. Returns -1, or a row that breaks a Bitmap
  // invariant.
  int64_t (*run)(const Args&, int64_t begin, int64_t end);
};

cpu::KernelTable<Kernel> kernels();

}  // namespace sparsecore::bitmap_to_csr
