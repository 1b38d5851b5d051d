// SPDX-License-Identifier: Apache-2.0
// nm_compress in plain loops: the floor for every CPU and the oracle in C++.
#include "ops/nm_compress/nm_compress_rows.h"

namespace sparsecore::nm_compress {
extern const Kernel kernel_scalar;
const Kernel kernel_scalar = {"nm_compress_scalar", cpu::Isa::scalar, compress_rows};
}  // namespace sparsecore::nm_compress
