// SPDX-License-Identifier: Apache-2.0
// nm_compress: w [n, k] to the arrays of an N:M weight (core/nm.h): of each group of m columns the n of largest
// magnitude, or those that a mask selects.
//   magnitude   compared as numbers, NaN above all and alike; of equals the lowest column
//   mask        a column that is not selected is not stored, but where a group has fewer than n selected: then its
//               lowest others are, as 0. More than n selected is a fault.
//   padding     columns >= k come after all others and are 0
//   float values   rounded to nearest even
//   8-bit values   scale = absmax of what the row stores / 127 (float8_e4m3fn: 448), value = w / scale to nearest
//                  even; a row of nothing has scale 0; one that stores NaN or infinity has that as its scale and 0 as
//                  its values
// Nothing aliases w or mask.
//
// fp32 4096 x 4096 to fp32 and bf16, two 2.8 GHz Ice Lake cores, ms: 2:4 AVX-512 23 and 13, scalar 120 and 112; 4:8 21
// and 9, 164 and 140; 410 of the row 127 and 154. torch's topk of 2 in groups of 4: 178.
#pragma once
#include "core/nm.h"
#include "core/scale.h"
#include "cpu/kernel_table.h"

namespace sparsecore::nm_compress {

struct Args {
  int64_t k;
  const void* w;  // [rows, k] of from, row i at w + i * stride elements
  int64_t stride;
  const uint8_t* mask;  // [rows, k] of 0 and 1, row i at mask + i * mask_stride, or null
  int64_t mask_stride;
  int64_t keep, group;
  void* values;     // [rows, row_values] of to
  void* positions;  // uint8 [rows, row_bytes], or index [rows, keep]
  float* scales;    // [rows] when to has 8 bits, else null
  Dtype from;       // f32, bf16, f16
  Dtype to;         // f32, bf16, f16, i8, f8
  Dtype index;      // i8: packed; i16, i32: constant fan-in

  SPARSECORE_INLINE NmView view() const { return {0, k, 0, keep, group, values, positions, nullptr, to, index}; }
};

struct Kernel {
  const char* name;
  cpu::Isa isa;
  // Rows [begin, end). Returns -1, or a row of whose groups the mask selects too many (the arrays are then part
  // written).
  int64_t (*run)(const Args&, int64_t begin, int64_t end);
};

cpu::KernelTable<Kernel> kernels();

// On CUDA: the same for all rows on a stream (a cudaStream_t), whose device holds every array; values and positions
// are aligned to what 64 columns of a row take, to 16 bytes at most. A group, or a constant fan-in's row, of which the
// mask selects too many stores NaN at the lowest columns selected, its row's scale is NaN. Reads nothing on the host,
// allocates nothing, may be captured. Null, or the error's text.
const char* launch(const Args&, int64_t rows, void* stream);

}  // namespace sparsecore::nm_compress
