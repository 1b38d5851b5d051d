// SPDX-License-Identifier: Apache-2.0
// nm_compress for packed groups, compiled once per ISA: 64 columns become a bit a kept column, tables turn the bits into
// positions. Words with columns past k, masks that select fewer than n, values of 8 bits and constant fan-in go through
// the plain loops.
#pragma once
#include "ops/nm_compress/nm_compress_rows.h"

// The ISA's file has defined, before this header, struct Word with
//   widest                         the largest m that it takes; the plain loops choose for others
//   largest<n, m>(args, i)         bits of the n columns of each group that are kept, of 64 from element i of w on
//   selected(mask)                 bits of 64 bytes that are not 0
//   pack<n, m>(args, at, i, taken) their values, to nearest even, to values[at ...]
namespace sparsecore::nm_compress {
namespace {

// Whether each group of m bits has n set.
template <int n, int m>
SPARSECORE_INLINE bool full(uint64_t taken) {
  bool all = true;
  for (int g = 0; g < 64; g += m) all &= __builtin_popcountll(taken >> g & ((uint64_t{1} << m) - 1)) == n;
  return all;
}

// Positions of a word from its kept columns; 8 columns at a time for m = 4 and 8.
template <int n, int m>
struct Codes {
  uint8_t at[256];
  constexpr Codes() : at() {
    for (unsigned taken = 0; taken < 256; ++taken)
      for (int g = 0, shift = 0; g < 8; g += m, shift += static_cast<int>(nm_code(n, m)))
        for (int j = 0, r = 0; j < m && r < n; ++j)
          if (taken >> (g + j) & 1)
            at[taken] = static_cast<uint8_t>(at[taken] | j << (shift + r++ * static_cast<int>(nm_field(m))));
  }
};

template <int n, int m>
SPARSECORE_INLINE uint64_t code_word(uint64_t taken) {
  uint64_t word = 0;
  if constexpr (nm_is_mask(n, m)) {
    word = taken;
  } else if constexpr (m == 16) {
    for (int g = 0; g < 4; ++g) {
      const unsigned bits = static_cast<unsigned>(taken >> 16 * g) & 0xffff;
      word |= static_cast<uint64_t>(__builtin_ctz(bits)) << 4 * g;
    }
  } else {
    static constexpr Codes<n, m> codes;
    constexpr int kBits = static_cast<int>(nm_code(n, m)) * 8 / m;
    for (int s = 0; s < 8; ++s) word |= static_cast<uint64_t>(codes.at[taken >> 8 * s & 255]) << kBits * s;
  }
  return word;
}

template <int n, int m>
inline int64_t compress_packed(const Args& a, int64_t begin, int64_t end) {
  const NmView view = a.view();
  constexpr int64_t kValues = nm_word_values(n, m), kBytes = nm_word_bytes(n, m);
  for (int64_t row = begin; row < end; ++row) {
    const Row r(a, row);
    uint8_t* codes = static_cast<uint8_t*>(a.positions) + row * view.row_bytes();
    int64_t at = row * view.row_values();
    for (int64_t c = 0; c < a.k; c += kNmColumns, codes += kBytes, at += kValues) {
      const bool whole = c + kNmColumns <= a.k;
      uint64_t taken = 0;
      bool exact = whole && (r.mask || m <= Word::widest);
      if (whole && r.mask) {
        taken = Word::selected(r.mask + c);
        exact = full<n, m>(taken);
      } else if (whole && m <= Word::widest) {
        taken = Word::template largest<n, m>(a, row * a.stride + c);
      }
      if (!exact) {
        taken = 0;
        for (int64_t g = 0; g < kNmColumns; g += m) {
          const uint32_t here = c + g < a.k ? choose(r, c + g, n, m) : (1u << n) - 1;
          if (here == ~0u) return row;
          taken |= static_cast<uint64_t>(here) << g;
        }
      }
      const uint64_t word = code_word<n, m>(taken);
      std::memcpy(codes, &word, static_cast<size_t>(kBytes));
      if (a.scales) continue;
      if (exact) Word::template pack<n, m>(a, at, row * a.stride + c, taken);
      for (int64_t p = at; !exact && taken != 0; taken &= taken - 1)
        store_f32(a.values, a.to, p++, r.stored(c + __builtin_ctzll(taken)));
    }
    if (a.scales) fill_values(r);
  }
  return -1;
}

int64_t run(const Args& a, int64_t begin, int64_t end) {
  if (a.index != Dtype::i8) return compress_rows(a, begin, end);
  return nm_visit(a.keep, a.group, [&]<int n, int m>() { return compress_packed<n, m>(a, begin, end); });
}

}  // namespace
}  // namespace sparsecore::nm_compress
