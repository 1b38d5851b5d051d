// SPDX-License-Identifier: Apache-2.0
// An op's kernel variants, best first and scalar last. Dispatch, tests, bench and the doctor read the
// same table.
#pragma once
#include <cstddef>

#include "cpu/isa.h"

namespace sparsecore::cpu {

template <class Kernel>
struct KernelTable {
  const Kernel* kernels;
  size_t count;
  const Kernel* begin() const { return kernels; }
  const Kernel* end() const { return kernels + count; }
};

// The forced variant, else the first that this CPU runs. Kernel has `name` and `isa`.
template <class Kernel>
const Kernel& choose(const KernelTable<Kernel>& table) {
  const int32_t forced = forced_isa();
  const Kernel* scalar = table.end() - 1;
  if (forced >= 0) {
    for (const Kernel& kernel : table)
      if (static_cast<int32_t>(kernel.isa) == forced) return kernel;
    return *scalar;
  }
  for (const Kernel& kernel : table)
    if (!isa_missing(kernel.isa)) return kernel;
  return *scalar;
}

}  // namespace sparsecore::cpu
