// SPDX-License-Identifier: Apache-2.0
#include "cpu/simd/vec_avx2.h"
#include "ops/spmm_csr/spmm_csr_simd.h"

namespace sparsecore::spmm_csr {
extern const Kernel kernel_avx2;
const Kernel kernel_avx2 = {"spmm_csr_avx2", cpu::Isa::avx2, plan, pack, run};
}  // namespace sparsecore::spmm_csr
