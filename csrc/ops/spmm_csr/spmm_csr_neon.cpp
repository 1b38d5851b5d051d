// SPDX-License-Identifier: Apache-2.0
#include "cpu/simd/vec_neon.h"
#include "ops/spmm_csr/spmm_csr_simd.h"

namespace sparsecore::spmm_csr {
extern const Kernel kernel_neon;
const Kernel kernel_neon = {"spmm_csr_neon", cpu::Isa::neon, plan, pack, run};
}  // namespace sparsecore::spmm_csr
