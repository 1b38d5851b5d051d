// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_decompress/kv_decompress.h"

namespace sparsecore::kv_decompress {

extern const Kernel kernel_scalar;
#if defined(__x86_64__)
extern const Kernel kernel_avx512;
#endif

cpu::KernelTable<Kernel> kernels() {
  static const Kernel table[] = {
#if defined(__x86_64__)
      kernel_avx512,
#endif
      kernel_scalar,
  };
  return {table, sizeof(table) / sizeof(table[0])};
}

}  // namespace sparsecore::kv_decompress
