// SPDX-License-Identifier: Apache-2.0
// bitmap_from_dense: w [n, k] to bitmask [n, 8 * ceil(k / 64)], row_offsets [n + 1], values [nnz] of
// another dtype and, for int8, scales [n]. Stored is what is not +-0: NaN is, a subnormal is.
//   float values   rounded to nearest even
//   int8 values    scale = absmax of the row / 127, value = w / scale to nearest even; a row of nothing has
//                  scale 0; one that holds NaN or infinity has that as its scale and 0 as its values
// Two phases, with a prefix sum of the counts between them. w may change meanwhile: pack asks the bitmask
// which elements are stored and so writes as many as were counted. Nothing aliases w.
//
// fp32 to fp32, 4096 x 4096, one 2.8 GHz Ice Lake core, CPU ms at 50 % and 90 % zeros: AVX-512 17, 17 (w is read twice,
// which sets the pace); AVX2 20, 20; scalar 38, 35. torch: w != 0 and w[mask] 234, 91; to_sparse_csr 342, 140.
// bf16 to bf16: 10, 9; 13, 13; 42, 33. fp32 to int8: 20, 20; 22, 23; 51, 41. No NEON variant: scalar runs there.
#pragma once
#include "core/bitmap.h"
#include "core/scale.h"
#include "cpu/kernel_table.h"

namespace sparsecore::bitmap_from_dense {

struct Args {
  int64_t n, k;
  const void* w;  // [n, k] of from, row i at w + i * stride elements
  int64_t stride;
  uint8_t* bitmask;  // as core/bitmap.h has it
  int64_t* row_offsets;  // bits leaves the count of row i at i + 1; pack reads offsets
  void* values;  // [nnz] of to
  float* scales;  // [n] when to is i8, else null
  Dtype from;  // f32, bf16, f16
  Dtype to;  // f32, bf16, f16, i8
};

struct Kernel {
  const char* name;
  cpu::Isa isa;
  void (*bits)(const Args&, int64_t begin, int64_t end);
  // Writes values of rows [begin, end) and none beside them.
  void (*pack)(const Args&, int64_t begin, int64_t end);
};

cpu::KernelTable<Kernel> kernels();

}  // namespace sparsecore::bitmap_from_dense
