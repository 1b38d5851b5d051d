// SPDX-License-Identifier: Apache-2.0
// kv_append: the loops over pages, for this ISA's registers.
#include "ops/kv_append/kv_append_pages.h"

namespace sparsecore::kv_append {
extern const Kernel kernel_neon;
const Kernel kernel_neon = {"kv_append_neon", cpu::Isa::neon, run};
}  // namespace sparsecore::kv_append
