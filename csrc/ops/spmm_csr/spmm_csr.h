// SPDX-License-Identifier: Apache-2.0
// spmm_csr: y[i, r] = bias[r] + sum over p in row r of values[p] * x[i, col_indices[p]]
// x [m, k], W CSR [n, k], y [m, n]; sums in fp32, rounded once to y's dtype. An element that is not
// stored takes no part: NaN or infinity in x at that column does not reach y. y aliases no input.
#pragma once
#include "core/csr.h"
#include "core/linear.h"
#include "cpu/kernel_table.h"

namespace sparsecore::spmm_csr {

struct Args {
  Linear dense;
  CsrView weight;
  Plan plan;
  float* packed;  // [plan.packed_floats]; unused when that is 0
};

struct Kernel {
  const char* name;
  cpu::Isa isa;
  Plan (*plan)(const Linear&, const CsrView&);
  // Fills packed for pieces [begin, end) of pack_pieces(plan, k).
  void (*pack)(const Args&, int64_t begin, int64_t end);
  // Rows [begin, end) of W into columns of y. Returns -1, or a row that breaks a CSR
  // invariant (y is then part written). scratch: plan.scratch_bytes, 64-byte aligned.
  int64_t (*run)(const Args&, int64_t begin, int64_t end, void* scratch);
};

cpu::KernelTable<Kernel> kernels();

}  // namespace sparsecore::spmm_csr
