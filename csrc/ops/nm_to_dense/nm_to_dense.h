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

}  // namespace sparsecore::nm_to_dense
