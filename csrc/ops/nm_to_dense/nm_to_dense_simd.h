// SPDX-License-Identifier: Apache-2.0
// nm_to_dense for packed groups, compiled once per ISA: the positions of 64 columns become a bit a column, by tables of
// 8 columns, and values are spread over the bits. float8 and a constant fan-in are the scalar kernel's.
#pragma once
#include "ops/nm_to_dense/nm_to_dense.h"

// The ISA's file has defined, before this header:
//   F32, Half, I8     kinds of values, each with Element, Out and
//     spread<n, m>(taken, values, scale, out)   64 columns, bit j of taken for column j; at most kOver elements past
//                                               the word's values are read
namespace sparsecore::nm_to_dense {
extern const Kernel kernel_scalar;
namespace {

constexpr int64_t kOver = 8;
constexpr int64_t kMostWord = kNmColumns * 3 / 4;  // values that a word has, at most: 6:8

// Columns, a bit each, of 8 columns' code.
template <int n, int m>
struct Masks {
  static constexpr int kBits = static_cast<int>(nm_code(n, m)) * 8 / m;
  uint8_t at[1 << kBits];
  constexpr Masks() : at() {
    for (unsigned code = 0; code < 1u << kBits; ++code)
      for (int g = 0; g < 8 / m; ++g)
        for (int r = 0; r < n; ++r) {
          const unsigned field = code >> (g * static_cast<int>(nm_code(n, m)) + r * static_cast<int>(nm_field(m)));
          at[code] = static_cast<uint8_t>(at[code] | 1u << (g * m + static_cast<int>(field & (m - 1))));
        }
  }
};

template <int n, int m>
SPARSECORE_INLINE uint64_t taken_word(uint64_t word) {
  uint64_t taken = 0;
  if constexpr (nm_is_mask(n, m)) {
    taken = word;
  } else if constexpr (m == 16) {
    for (int g = 0; g < 4; ++g) taken |= uint64_t{1} << (16 * g + static_cast<int>(word >> 4 * g & 15));
  } else {
    static constexpr Masks<n, m> masks;
    constexpr int kBits = Masks<n, m>::kBits;
    for (int s = 0; s < 8; ++s) taken |= uint64_t{masks.at[word >> kBits * s & ((1 << kBits) - 1)]} << 8 * s;
  }
  return taken;
}

// Words of columns past k, and those near the array's end, beyond which nothing may be read, are met in copies.
template <int n, int m, class V>
inline int64_t spread_words(const Args& a, int64_t begin, int64_t end) {
  using Element = typename V::Element;
  using Out = typename V::Out;
  const NmView& w = a.weight;
  const int64_t words = nm_words(w.k);
  constexpr int64_t kValues = nm_word_values(n, m), kBytes = nm_word_bytes(n, m);
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* codes = w.codes(row);
    uint64_t faults = 0;
    for (int64_t i = 0; i < words; ++i) faults |= nm_word_faults<n, m>(nm_word<n, m>(codes + i * kBytes));
    if (faults != 0) return row;
    const Element* values = static_cast<const Element*>(w.values) + row * w.row_values();
    Out* out = static_cast<Out*>(a.dense) + row * w.k;
    const float scale = w.scales ? w.scales[row] : 1.0f;
    const int64_t readable = (w.n - row) * w.row_values() - kOver, inside = readable < 0 ? 0 : readable / kValues;
    const int64_t whole = w.k / kNmColumns, direct = inside < whole ? inside : whole;
    for (int64_t i = 0; i < words; ++i) {
      const uint64_t taken = taken_word<n, m>(nm_word<n, m>(codes + i * kBytes));
      if (i < direct) {
        V::template spread<n, m>(taken, values + i * kValues, scale, out + i * kNmColumns);
        continue;
      }
      const int64_t c = i * kNmColumns, live = w.k - c < kNmColumns ? w.k - c : kNmColumns;
      alignas(64) Element stage[kMostWord + kOver] = {};
      alignas(64) Out tile[kNmColumns];
      std::memcpy(stage, values + i * kValues, kValues * sizeof(Element));
      V::template spread<n, m>(taken, stage, scale, tile);
      std::memcpy(out + c, tile, static_cast<size_t>(live) * sizeof(Out));
    }
  }
  return -1;
}

int64_t run(const Args& a, int64_t begin, int64_t end) {
  const NmView& w = a.weight;
  if (!w.packed() || w.value == Dtype::f8) return kernel_scalar.run(a, begin, end);
  return nm_visit(w.keep, w.group, [&]<int n, int m>() {
    switch (w.value) {
      case Dtype::bf16:
      case Dtype::f16: return spread_words<n, m, Half>(a, begin, end);
      case Dtype::i8: return spread_words<n, m, I8>(a, begin, end);
      default: return spread_words<n, m, F32>(a, begin, end);
    }
  });
}

}  // namespace
}  // namespace sparsecore::nm_to_dense
