// SPDX-License-Identifier: Apache-2.0
#include "cpu/simd/vec_avx512.h"
#include "ops/spmm_csr/spmm_csr_simd.h"

namespace sparsecore::spmm_csr {
extern const Kernel kernel_avx512;
const Kernel kernel_avx512 = {"spmm_csr_avx512", cpu::Isa::avx512, plan, pack, run};
}  // namespace sparsecore::spmm_csr
