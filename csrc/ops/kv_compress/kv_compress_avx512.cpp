// SPDX-License-Identifier: Apache-2.0
// kv_compress: the loops over rows, for this ISA's registers.
#include "ops/kv_compress/kv_compress_rows.h"

namespace sparsecore::kv_compress {
extern const Kernel kernel_avx512;
const Kernel kernel_avx512 = {"kv_compress_avx512", cpu::Isa::avx512, run};
}  // namespace sparsecore::kv_compress
