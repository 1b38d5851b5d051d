// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_compress/kv_compress.h"

namespace sparsecore::kv_compress {

extern const Kernel kernel_scalar;
#if defined(__x86_64__)
extern const Kernel kernel_avx2, kernel_avx512;
#elif defined(__aarch64__)
extern const Kernel kernel_neon;
#endif

cpu::KernelTable<Kernel> kernels() {
  static const Kernel table[] = {
#if defined(__x86_64__)
      kernel_avx512,
      kernel_avx2,
#elif defined(__aarch64__)
      kernel_neon,
#endif
      kernel_scalar,
  };
  return {table, sizeof(table) / sizeof(table[0])};
}

}  // namespace sparsecore::kv_compress
