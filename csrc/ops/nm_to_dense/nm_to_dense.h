// SPDX-License-Identifier: Apache-2.0
// nm_to_dense: an N:M weight to dense [n, k] of values' dtype, bit for bit; float32, value * scale of its row rounded
// once, when scaled. 0 where nothing is stored. The arrays are untrusted, dense aliases none.
#pragma once
#include "core/nm.h"
#include "cpu/kernel_table.h"

namespace sparsecore::nm_to_dense {

struct Args {
  NmView weight;
  void* dense;  // [n, k], contiguous
};

struct Kernel {
  const char* name;
  cpu::Isa isa;
  // Writes rows [begin, end). Returns -1, or a row that breaks an N:M invariant (dense is then part written).
  int64_t (*run)(const Args&, int64_t begin, int64_t end);
};

cpu::KernelTable<Kernel> kernels();

// On CUDA: the same on a stream (a cudaStream_t), whose device holds every array; values and positions are aligned to
// what 64 columns of a row take, to 16 bytes at most. A row that breaks an invariant comes out NaN, and nothing outside
// the arrays is read. Reads nothing on the host, allocates nothing, may be captured. Null, or the error's text.
const char* launch(const Args&, void* stream);

}  // namespace sparsecore::nm_to_dense
