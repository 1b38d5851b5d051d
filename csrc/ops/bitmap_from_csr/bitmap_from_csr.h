// SPDX-License-Identifier: Apache-2.0
// bitmap_from_csr: the bitmask [n, 8 * ceil(k / 64)] of a CSR pattern. Values of a Bitmap lie in the same
// order and row_offsets are crow_indices, so both stay what they are. The arrays are untrusted; nothing
// aliases.
//
// int32, 4096 x 4096, one 2.8 GHz Ice Lake core, CPU ms at 50 % and 90 % zeros: 13 to 17, 5 to 6 (2 ns a column, one after
// another). Every column has to be checked as well, so one variant serves all CPUs.
#pragma once
#include "core/bitmap.h"
#include "core/csr.h"
#include "cpu/kernel_table.h"

namespace sparsecore::bitmap_from_csr {

struct Args {
  CsrView pattern;  // its values are not read
  uint8_t* bitmask;  // as core/bitmap.h has it
};

struct Kernel {
  const char* name;
  cpu::Isa isa;
  // Writes rows [begin, end) of bitmask. Returns -1, or a row that breaks a CSR invariant.
  int64_t (*run)(const Args&, int64_t begin, int64_t end);
};

cpu::KernelTable<Kernel> kernels();

}  // namespace sparsecore::bitmap_from_csr
