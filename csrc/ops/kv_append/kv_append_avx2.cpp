// SPDX-License-Identifier: Apache-2.0
// kv_append: the loops over pages, for this ISA's registers.
#include "ops/kv_append/kv_append_pages.h"

namespace sparsecore::kv_append {
extern const Kernel kernel_avx2;
const Kernel kernel_avx2 = {"kv_append_avx2", cpu::Isa::avx2, run};
}  // namespace sparsecore::kv_append
