// SPDX-License-Identifier: Apache-2.0
// spgemm in plain loops: the floor for every CPU and the oracle in C++.
#include "ops/spgemm/spgemm_simd.h"

namespace sparsecore::spgemm {

extern const Kernel kernel_scalar;
const Kernel kernel_scalar = kernel_of<PlainLanes>("spgemm_scalar", cpu::Isa::scalar);

}  // namespace sparsecore::spgemm
