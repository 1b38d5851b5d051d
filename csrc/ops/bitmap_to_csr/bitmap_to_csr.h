// SPDX-License-Identifier: Apache-2.0
// bitmap_to_csr: col_indices [nnz] of a bitmask, rising within a row. Values of CSR lie in the same order and
// crow_indices are row_offsets, so both stay what they are. The arrays are untrusted; nothing aliases.
//
// int32, 4096 x 4096, one 2.8 GHz Ice Lake core, CPU ms at 50 % and 90 % zeros: AVX-512 4.5, 1.3; scalar 11, 5. int64: 9, 2;
// 14, 6. A table of columns by byte, as AVX2 has no compress, was not tried: the op is no part of a product.
#pragma once
#include "core/bitmap.h"
#include "cpu/kernel_table.h"

namespace sparsecore::bitmap_to_csr {

struct Args {
  BitmapView pattern;  // its values and scales are not read
  void* col;  // [nnz] of index
  Dtype index;  // i32, i64
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
