// SPDX-License-Identifier: Apache-2.0
// kv_compress: the loops over rows, for this ISA's registers.
#include "ops/kv_compress/kv_compress_rows.h"

namespace sparsecore::kv_compress {
extern const Kernel kernel_neon;
const Kernel kernel_neon = {"kv_compress_neon", cpu::Isa::neon, run};
}  // namespace sparsecore::kv_compress
