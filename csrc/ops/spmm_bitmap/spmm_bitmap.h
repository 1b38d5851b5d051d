// SPDX-License-Identifier: Apache-2.0
// spmm_bitmap: y[i, r] = bias[r] + scale[r] * sum over set bits c of row r of value * x[i, c]
// x [m, k], W Bitmap [n, k], y [m, n]; sums in fp32, rounded once to y's dtype. An element that is
// not stored takes no part: NaN or infinity in x at that column does not reach y. y aliases no input.
#pragma once
#include "core/bitmap.h"
#include "core/linear.h"
#include "cpu/kernel_table.h"

namespace sparsecore::spmm_bitmap {

struct Args {
  Linear dense;
  BitmapView weight;
  Plan plan;
  float* packed;  // [plan.packed_floats]; unused when that is 0
};

struct Kernel {
  const char* name;
  cpu::Isa isa;
  Plan (*plan)(const Linear&, const BitmapView&);
  // Fills packed for pieces [begin, end) of pack_pieces(plan, k).
  void (*pack)(const Args&, int64_t begin, int64_t end);
  // Rows [begin, end) of W into columns of y. Returns -1, or a row that breaks a Bitmap
  // invariant (y is then part written). scratch: plan.scratch_bytes, 64-byte aligned.
  int64_t (*run)(const Args&, int64_t begin, int64_t end, void* scratch);
};

cpu::KernelTable<Kernel> kernels();

// On CUDA: the same on a stream (a cudaStream_t), whose device holds every array; bitmask is aligned to 4 bytes. A
// row of W that breaks a Bitmap invariant gives a column of NaN in y, and nothing outside the arrays is read.
// Reads nothing on the host, allocates nothing, may be captured. Null, or the error's text.
const char* launch(const Linear&, const BitmapView&, void* stream);

}  // namespace sparsecore::spmm_bitmap
