// SPDX-License-Identifier: Apache-2.0
// spgemm with the scalar instructions that come with AVX2: FMA, POPCNT, BZHI and TZCNT for ranks and scans.
// Sums are one load and store each, at any columns: vectors of 8 gathered and scattered by hand gain nothing.
#include "ops/spgemm/spgemm_simd.h"

namespace sparsecore::spgemm {

extern const Kernel kernel_avx2;
const Kernel kernel_avx2 = kernel_of<PlainLanes>("spgemm_avx2", cpu::Isa::avx2);

}  // namespace sparsecore::spgemm
