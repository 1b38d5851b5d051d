// SPDX-License-Identifier: Apache-2.0
// kv_append: the loops over pages, for this ISA's registers.
#include "ops/kv_append/kv_append_pages.h"

namespace sparsecore::kv_append {
extern const Kernel kernel_avx512;
const Kernel kernel_avx512 = {"kv_append_avx512", cpu::Isa::avx512, run};
}  // namespace sparsecore::kv_append
