// SPDX-License-Identifier: Apache-2.0
#include "ops/nm_to_dense/nm_to_dense.h"

namespace sparsecore::nm_to_dense {

extern const Kernel kernel_scalar;

cpu::KernelTable<Kernel> kernels() {
  static const Kernel table[] = {
      kernel_scalar,
  };
  return {table, sizeof(table) / sizeof(table[0])};
}

}  // namespace sparsecore::nm_to_dense
