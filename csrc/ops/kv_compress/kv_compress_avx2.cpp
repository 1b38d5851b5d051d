// SPDX-License-Identifier: Apache-2.0
// kv_compress: the loops over rows, for this ISA's registers.
#include "ops/kv_compress/kv_compress_rows.h"

namespace sparsecore::kv_compress {
extern const Kernel kernel_avx2;
const Kernel kernel_avx2 = {"kv_compress_avx2", cpu::Isa::avx2, run};
}  // namespace sparsecore::kv_compress
