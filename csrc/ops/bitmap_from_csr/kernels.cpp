// SPDX-License-Identifier: Apache-2.0
#include "ops/bitmap_from_csr/bitmap_from_csr.h"

namespace sparsecore::bitmap_from_csr {

extern const Kernel kernel_scalar;

cpu::KernelTable<Kernel> kernels() {
  static const Kernel table[] = {
      kernel_scalar,
  };
  return {table, sizeof(table) / sizeof(table[0])};
}

}  // namespace sparsecore::bitmap_from_csr
