// SPDX-License-Identifier: Apache-2.0
// N:M: of every group of m columns of a row exactly n are stored. Two kinds, told apart by the dtype of positions.
//
// Packed groups, 1:2, 2:4, 4:8, 6:8, 1:4, 2:8, 1:8, 1:16; groups lie along the input dimension (here 2:4):
//
//        columns 0 1 2 3 | 4 5 6 7 | ...  k-1 | padding to K, a multiple of 64
//   row 0       [a . b . | . . c d | ...      | . . . .]
//                group 0   group 1
//   values     [rows, G, n], G = K / m     a b | c d | ...   a group's in rising order of column
//   positions  uint8 [rows, G * code / 8]  a field a group, least significant bit first, the first group lowest
//
//        m = 2, 4, 8, 16 and n <= 2   the columns within the group, rising, of 1, 2, 4, 4 bits each: 2:4 is what
//                                     mma.sp takes as metadata, 0b1000 for columns 0 and 2
//        4:8, 6:8                     a mask of 8 bits, column j in bit j: fewer bytes than positions
//
//              1:2    2:4    4:8    6:8    1:4    2:8    1:8    1:16
//   code bits  1      4      8      8      2      8      4      4       of a group
//   16-bit     0.531  0.5625 0.5625 0.8125 0.281  0.3125 0.156  0.078   bytes over dense, values and positions
//   8-bit      0.5625 0.625  0.625  0.875  0.3125 0.375  0.1875 0.094   beside 4 of scale a row
//
// Constant fan-in, n of k: one group, the whole row, its columns in full (SRigL's condensed form, Lasby et al. 2024):
//   values     [rows, 1, n]
//   positions  int16 [rows, n] where k <= 2^15, else int32; columns, rising strictly
//   16-bit     (2 + 2) n bytes a row: 0.2 of dense at 90 %
//
//   values     float32, bfloat16, float16, or int8 or float8_e4m3fn with
//   scales     float32 [rows]              weight = scales[row] * value
//
// Invariants: positions rise strictly within a group and are below m (k); a mask has n bits set. A stored value may be
// 0, and is then stored. Padding is ours: K = 64 * ceil(k / 64) (none for a constant fan-in), so that 64 columns are
// whole bytes of positions and every row begins alike. A value whose column is k or more takes no part; it is written
// as 0.
// Shapes say all: n and G are sizes of values, m = K / G. Every row has the same bytes, so no array of offsets is read.
//
// The arrays are untrusted. Packed positions reach no column beyond K whatever their bits; those of a constant fan-in
// are safe once compared with k.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/dtype.h"

namespace sparsecore {

constexpr int64_t kNmColumns = 64;  // K is a multiple; one word of positions
constexpr int64_t nm_words(int64_t k) { return k / kNmColumns + (k % kNmColumns != 0); }

constexpr bool nm_is_mask(int64_t n, int64_t m) { return m == 8 && n >= 4; }
constexpr int64_t nm_field(int64_t m) { return m == 2 ? 1 : m == 4 ? 2 : 4; }  // bits of a position
constexpr int64_t nm_code(int64_t n, int64_t m) { return nm_is_mask(n, m) ? 8 : n * nm_field(m); }  // of a group
// Bytes of positions and elements of values that 64 columns have.
constexpr int64_t nm_word_bytes(int64_t n, int64_t m) { return kNmColumns / m * nm_code(n, m) / 8; }
constexpr int64_t nm_word_values(int64_t n, int64_t m) { return kNmColumns / m * n; }

constexpr bool nm_is_packed(int64_t n, int64_t m) {
  return (n == 1 && (m == 2 || m == 4 || m == 8 || m == 16)) || (n == 2 && (m == 4 || m == 8)) ||
         (m == 8 && (n == 4 || n == 6));
}

// m of packed groups, from sizes; 0 where there is no such kind. Without columns any kind with this n serves.
constexpr int64_t nm_group_size(int64_t groups, int64_t n, int64_t k) {
  const int64_t padded = kNmColumns * nm_words(k);
  if (padded == 0 && groups == 0) return n == 1 ? 2 : n == 2 ? 4 : nm_is_packed(n, 8) ? 8 : 0;
  const int64_t m = groups > 0 && padded % groups == 0 ? padded / groups : 0;
  return nm_is_packed(n, m) ? m : 0;
}
constexpr Dtype nm_index(int64_t k) { return k <= (int64_t{1} << 15) ? Dtype::i16 : Dtype::i32; }

// fn.template operator()<n, m>() of a packed kind, anything for others.
template <class Fn>
SPARSECORE_INLINE auto nm_visit(int64_t n, int64_t m, const Fn& fn) {
  switch (16 * n + m) {
    case 16 + 2: return fn.template operator()<1, 2>();
    case 32 + 4: return fn.template operator()<2, 4>();
    case 64 + 8: return fn.template operator()<4, 8>();
    case 96 + 8: return fn.template operator()<6, 8>();
    case 16 + 4: return fn.template operator()<1, 4>();
    case 32 + 8: return fn.template operator()<2, 8>();
    case 16 + 8: return fn.template operator()<1, 8>();
    default: return fn.template operator()<1, 16>();
  }
}

struct NmView {
  int64_t n, k, nnz;  // rows, in_features, elements of values
  int64_t keep, group;  // n of m
  const void* values;  // [n, row_values]
  const void* positions;  // uint8 [n, row_bytes] or index [n, keep]
  const float* scales;  // [n] when value is i8 or f8, else null
  Dtype value;  // f32, bf16, f16, i8, f8
  Dtype index;  // i8: packed; i16, i32: constant fan-in

  SPARSECORE_INLINE bool packed() const { return index == Dtype::i8; }
  SPARSECORE_INLINE int64_t row_values() const { return packed() ? nm_words(k) * nm_word_values(keep, group) : keep; }
  SPARSECORE_INLINE int64_t row_bytes() const { return nm_words(k) * nm_word_bytes(keep, group); }
  SPARSECORE_INLINE const uint8_t* codes(int64_t row) const {
    return static_cast<const uint8_t*>(positions) + row * row_bytes();
  }
  // Of a constant fan-in.
  SPARSECORE_INLINE int64_t column(int64_t p) const {
    return index == Dtype::i16 ? static_cast<const int16_t*>(positions)[p] : static_cast<const int32_t*>(positions)[p];
  }
};

// Positions of 64 columns in the low bits; `codes` is the word's first byte.
template <int n, int m>
SPARSECORE_INLINE uint64_t nm_word(const uint8_t* codes) {
  uint64_t word = 0;
  std::memcpy(&word, codes, static_cast<size_t>(nm_word_bytes(n, m)));
  return word;
}

// 0 where the groups of a word hold. No branch, so that a kernel can afford it: at most 9 operations for 64 columns.
template <int n, int m>
SPARSECORE_INLINE uint64_t nm_word_faults(uint64_t word) {
  if constexpr (n == 2 && m == 4) {  // fields of 4 bits: second - first + 3 reaches 4
    const uint64_t low = word & 0x3333333333333333u, high = word >> 2 & 0x3333333333333333u;
    return ~(high + 0x3333333333333333u - low) & 0x4444444444444444u;
  } else if constexpr (n == 2 && m == 8) {
    const uint64_t low = word & 0x0707070707070707u, high = word >> 4 & 0x0707070707070707u;
    return (~(high + 0x0707070707070707u - low) & 0x0808080808080808u) | (word & 0x8888888888888888u);
  } else if constexpr (n == 1 && m == 8) {
    return word & 0x8888888888888888u;
  } else if constexpr (nm_is_mask(n, m)) {
    uint64_t count = word - (word >> 1 & 0x5555555555555555u);
    count = (count & 0x3333333333333333u) + (count >> 2 & 0x3333333333333333u);
    return ((count + (count >> 4)) & 0x0f0f0f0f0f0f0f0fu) ^ n * 0x0101010101010101u;
  } else {
    return 0;
  }
}

// Columns of group `g` of a word, from the word's first column on.
template <int n, int m>
SPARSECORE_INLINE void nm_group(uint64_t word, int64_t g, int32_t* columns) {
  const uint64_t field = word >> g * nm_code(n, m);
  if constexpr (nm_is_mask(n, m)) {
    int at = 0;
    for (int j = 0; j < m && at < n; ++j)
      if (field >> j & 1) columns[at++] = static_cast<int32_t>(g * m + j);
    while (at < n) columns[at++] = static_cast<int32_t>(g * m + m - 1);  // a mask with too few
  } else {
    for (int r = 0; r < n; ++r)
      columns[r] = static_cast<int32_t>(g * m + static_cast<int64_t>(field >> r * nm_field(m) & (m - 1)));
  }
}

// fn(column, place within the row) for the stored elements of a row in order, of columns below k.
template <class Fn>
SPARSECORE_INLINE void nm_row(const NmView& w, int64_t row, const Fn& fn) {
  if (!w.packed()) {
    for (int64_t p = 0; p < w.keep; ++p) fn(w.column(row * w.keep + p), p);
    return;
  }
  nm_visit(w.keep, w.group, [&]<int n, int m>() {
    int64_t p = 0;
    for (int64_t i = 0; i < nm_words(w.k); ++i) {
      const uint64_t word = nm_word<n, m>(w.codes(row) + i * nm_word_bytes(n, m));
      for (int64_t g = 0; g < kNmColumns / m; ++g) {
        int32_t columns[n];
        nm_group<n, m>(word, g, columns);
        for (int r = 0; r < n; ++r, ++p)
          if (i * kNmColumns + columns[r] < w.k) fn(i * kNmColumns + columns[r], p);
      }
    }
  });
}

enum class NmFault : int32_t { none, order, population, range };

struct NmFinding {
  NmFault fault = NmFault::none;
  int64_t row = 0;
  int64_t column = 0;  // of the group's begin; range: the offending column
};

SPARSECORE_INLINE NmFinding nm_check_row(const NmView& w, int64_t row) {
  if (!w.packed()) {
    int64_t last = -1;
    for (int64_t p = 0; p < w.keep; ++p) {
      const int64_t c = w.column(row * w.keep + p);
      if (c < 0 || c >= w.k) return {NmFault::range, row, c};
      if (c <= last) return {NmFault::order, row, c};
      last = c;
    }
    return {};
  }
  return nm_visit(w.keep, w.group, [&]<int n, int m>() -> NmFinding {
    for (int64_t i = 0; i < nm_words(w.k); ++i) {
      const uint64_t faults = nm_word_faults<n, m>(nm_word<n, m>(w.codes(row) + i * nm_word_bytes(n, m)));
      if (faults == 0) continue;
      const int64_t g = __builtin_ctzll(faults) / nm_code(n, m);
      return {nm_is_mask(n, m) ? NmFault::population : NmFault::order, row, i * kNmColumns + g * m};
    }
    return {};
  });
}

}  // namespace sparsecore
