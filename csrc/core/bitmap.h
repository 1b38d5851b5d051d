// SPDX-License-Identifier: Apache-2.0
// Bitmap: one bit per element says where the nonzeros are, the nonzeros follow in row order.
//
//        columns 0 1 2 3 4 5 6 7 ... k-1 | pad to a multiple of 64
//   row 0       [a . . b . . . .    .   | 0 ...]    bitmask row 0, bytes: 0b00001001 ...
//   row 1       [. c . . . . . .    d   | 0 ...]    bitmask row 1, bytes: 0b00000010 ...
//
//   bitmask      uint8 [n, 8 * ceil(k / 64)]  bit j (least significant first) of byte b is column 8b + j
//   row_offsets  int64 [n + 1]                values of row i are values[row_offsets[i] .. row_offsets[i+1])
//   values       [nnz]                        float32, bfloat16, float16, or int8 with
//   scales       float32 [n]                  weight = scales[row] * value (int8 only)
//
// Invariants: row_offsets[0] = 0, row_offsets[n] = nnz, row_offsets[i+1] - row_offsets[i] =
// popcount(bitmask row i); bits at columns >= k are 0. A stored value may be zero (it then counts as
// stored). Values have no padding: a reader must not load past values + nnz.
//
// A row of 64-bit words reads alike on every little-endian CPU and GPU: lane l of a warp takes bit l
// of a 32-bit half, its value lies at row_offset + popcount(bits before). Rows are the unit of work;
// within a row a prefix sum of popcounts gives every word's offset.
//
// Bytes per element over dense: 1/8 + density * value (+ 8 or 12 per row). 16-bit values at 50 %:
// 1.125 B of 4 (fp32) or 2. Smaller than CSR with int32 columns wherever density > 1/32.
//
// The arrays are untrusted. A row is safe to read once 0 <= row_offsets[i], and either
// row_offsets[i] + k <= nnz or its popcount has been compared with its length.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/dtype.h"

namespace sparsecore {

constexpr int64_t bitmap_words(int64_t k) { return k / 64 + (k % 64 != 0); }

struct BitmapView {
  int64_t n, k, nnz;
  const uint8_t* bitmask;      // [n, 8 * bitmap_words(k)]
  const int64_t* row_offsets;  // [n + 1]
  const void* values;          // [nnz] of value
  const float* scales;         // [n] when value is i8, else null
  Dtype value;                 // f32, bf16, f16, i8

  SPARSECORE_INLINE const uint8_t* row_bits(int64_t row) const { return bitmask + row * 8 * bitmap_words(k); }
};

SPARSECORE_INLINE uint64_t bitmap_word(const uint8_t* row_bits, int64_t word) {
  uint64_t bits;
  std::memcpy(&bits, row_bits + 8 * word, 8);
  return bits;
}

enum class BitmapFault : int32_t { none, offsets_start, offsets_end, offsets_falls, popcount, padding };

struct BitmapFinding {
  BitmapFault fault = BitmapFault::none;
  int64_t row = 0;
  int64_t value = 0;  // the offending offset or population
};

SPARSECORE_INLINE BitmapFinding bitmap_check_row(const BitmapView& w, int64_t row) {
  const int64_t begin = w.row_offsets[row], end = w.row_offsets[row + 1];
  if (begin < 0 || begin > end) return {BitmapFault::offsets_falls, row, end};
  if (end > w.nnz) return {BitmapFault::offsets_end, row, end};
  const int64_t words = bitmap_words(w.k);
  const uint8_t* bits = w.row_bits(row);
  int64_t population = 0;
  for (int64_t i = 0; i < words; ++i) population += __builtin_popcountll(bitmap_word(bits, i));
  if (population != end - begin) return {BitmapFault::popcount, row, population};
  if (w.k % 64 != 0 && bitmap_word(bits, words - 1) >> (w.k % 64) != 0) return {BitmapFault::padding, row, population};
  return {};
}

SPARSECORE_INLINE BitmapFinding bitmap_check_ends(const BitmapView& w) {
  if (w.row_offsets[0] != 0) return {BitmapFault::offsets_start, 0, w.row_offsets[0]};
  if (w.row_offsets[w.n] != w.nnz) return {BitmapFault::offsets_end, w.n, w.row_offsets[w.n]};
  return {};
}

}  // namespace sparsecore
