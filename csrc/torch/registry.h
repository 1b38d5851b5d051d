// SPDX-License-Identifier: Apache-2.0
// Every op's kernel table by name, for the doctor and the tests, and the kernel that ran last.
#pragma once
#include <cstddef>

#include "cpu/kernel_table.h"

namespace sparsecore::binding {

struct Variant {
  const char* kernel;
  cpu::Isa isa;
};

void register_variant(const char* op, const Variant& variant);

// Call at namespace scope: `static const bool registered = register_kernels("op", kernels());`
template <class Kernel>
bool register_kernels(const char* op, const cpu::KernelTable<Kernel>& table) {
  for (const Kernel& kernel : table) register_variant(op, {kernel.name, kernel.isa});
  return true;
}

// Names the kernel that the calling process ran last; any thread may read it.
void note_kernel(const char* kernel);

}  // namespace sparsecore::binding
