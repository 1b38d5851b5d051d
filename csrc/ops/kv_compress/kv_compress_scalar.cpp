// SPDX-License-Identifier: Apache-2.0
// kv_compress: the loops over rows, for this ISA's registers.
#include "ops/kv_compress/kv_compress_rows.h"

namespace sparsecore::kv_compress {
extern const Kernel kernel_scalar;
const Kernel kernel_scalar = {"kv_compress_scalar", cpu::Isa::scalar, run};
}  // namespace sparsecore::kv_compress
