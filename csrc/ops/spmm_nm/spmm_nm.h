// SPDX-License-Identifier: Apache-2.0
// spmm_nm: y[i, r] = activation(bias[r] + scale[r] * sum over stored (r, c) of value * x[i, c]) + residual[i, r]
// x [m, k], W N:M [n, k], y [m, n]; sums in fp32, rounded once to y's dtype. An element that is not stored takes no
// part: NaN or infinity in x at that column does not reach y. y aliases no input.
#pragma once
#include "core/linear.h"
#include "core/nm.h"
#include "cpu/kernel_table.h"

namespace sparsecore::spmm_nm {

struct Args {
  Linear dense;
  NmView weight;
  Plan plan;
  float* packed;  // [plan.packed_floats]; unused when that is 0
};

struct Kernel {
  const char* name;
  cpu::Isa isa;
  Plan (*plan)(const Linear&, const NmView&);
  // Fills packed for pieces [begin, end) of pack_pieces(plan, k).
  void (*pack)(const Args&, int64_t begin, int64_t end);
  // Rows [begin, end) of W into columns of y. Returns -1, or a row that breaks an N:M
  // invariant (y is then part written). scratch: plan.scratch_bytes, 64-byte aligned.
  int64_t (*run)(const Args&, int64_t begin, int64_t end, void* scratch);
};

cpu::KernelTable<Kernel> kernels();

// On CUDA: the same on a stream (a cudaStream_t), whose device holds every array; values and positions are aligned to
// what 64 columns of a row take, to 16 bytes at most. A row of W that breaks an invariant gives a column of NaN in y,
// and nothing outside the arrays is read. Reads nothing on the host, allocates nothing, may be captured. Null, or the
// error's text.
const char* launch(const Linear&, const NmView&, void* stream);

}  // namespace sparsecore::spmm_nm
