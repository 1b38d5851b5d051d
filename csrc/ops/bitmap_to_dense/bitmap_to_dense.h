// SPDX-License-Identifier: Apache-2.0
// bitmap_to_dense: a Bitmap weight to dense [n, k] of values' dtype, bit for bit; float32, value * scale of
// its row rounded once, when scaled. 0 where nothing is stored. The arrays are untrusted, dense aliases none.
#pragma once
#include "core/bitmap.h"
#include "cpu/kernel_table.h"

namespace sparsecore::bitmap_to_dense {

struct Args {
  BitmapView weight;
  void* dense;  // [n, k], contiguous
};

struct Kernel {
  const char* name;
  cpu::Isa isa;
  // Writes rows [begin, end). Returns -1, or a row that breaks a Bitmap invariant (dense is then part written).
  int64_t (*run)(const Args&, int64_t begin, int64_t end);
};

cpu::KernelTable<Kernel> kernels();

}  // namespace sparsecore::bitmap_to_dense
