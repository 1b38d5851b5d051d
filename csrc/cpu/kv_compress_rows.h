// SPDX-License-Identifier: Apache-2.0
// Dense rows of K or V to bits and values, in loops that are compiled once per ISA. A row's keys are its magnitudes as
// integers; the least key that is kept is found bit by bit from the highest, each time by counting the keys that reach
// it: 15 counts of 16-bit keys or 31 of 32-bit ones, which compilers turn into a compare and a subtraction a register.
// ops/kv_compress/kv_compress.h has the rule and its cost.
#pragma once
#include "core/kv.h"

namespace sparsecore {
namespace {

struct KvRows {
  const void* x;  // [rows, head_dim] of value, row i at x + i * stride elements
  int64_t stride, head_dim, keep;
  uint8_t* bitmask;  // [rows, 4 * words]
  void* values;  // [rows, keep] of value
  Dtype value;  // f32, bf16, f16
};

constexpr int64_t kKvMost = 256;  // channels

// Number is the integer type of a value's bits, `infinity` its infinity.
template <class Number>
void kv_compress_as(const KvRows& a, Number infinity, int64_t begin, int64_t end) {
  constexpr Number magnitude = static_cast<Number>(~Number{0}) >> 1;
  const int64_t d = a.head_dim, words = kv_words(d), padded = 32 * words;
  for (int64_t row = begin; row < end; ++row) {
    const Number* const x = static_cast<const Number*>(a.x) + row * a.stride;
    alignas(64) Number keys[kKvMost];
    for (int64_t c = 0; c < d; ++c) {
      const Number key = x[c] & magnitude;
      keys[c] = key > infinity ? static_cast<Number>(infinity + 1) : key;
    }
    for (int64_t c = d; c < padded; ++c) keys[c] = 0;  // below every bound that is counted
    Number least = 0;
    for (int bit = 8 * static_cast<int>(sizeof(Number)) - 2; bit >= 0; --bit) {
      const Number bound = static_cast<Number>(least | Number{1} << bit);
      Number count = 0;
      for (int64_t c = 0; c < padded; ++c) count = static_cast<Number>(count + (keys[c] >= bound));
      if (static_cast<int64_t>(count) >= a.keep) least = bound;
    }
    Number above = 0;
    for (int64_t c = 0; c < padded; ++c) above = static_cast<Number>(above + (keys[c] > least));
    int64_t ties = a.keep - static_cast<int64_t>(above);
    // A store a channel, whether it is kept or not: no branch.
    Number kept[kKvMost + 1];
    int64_t at = 0;
    for (int64_t w = 0; w < words; ++w) {
      uint32_t word = 0;
      const int64_t first = 32 * w, last = d - first < 32 ? d - first : 32;
      for (int64_t j = 0; j < last; ++j) {
        const Number key = keys[first + j];
        const bool tie = (key == least) & (ties > 0), take = (key > least) | tie;
        ties -= tie;
        kept[at] = x[first + j];
        at += take;
        word |= static_cast<uint32_t>(take) << j;
      }
      std::memcpy(a.bitmask + (row * words + w) * 4, &word, 4);
    }
    if (a.keep > 0)
      std::memcpy(static_cast<Number*>(a.values) + row * a.keep, kept, static_cast<size_t>(a.keep) * sizeof(Number));
  }
}

inline void kv_compress_rows(const KvRows& a, int64_t begin, int64_t end) {
  switch (a.value) {
    case Dtype::bf16: return kv_compress_as<uint16_t>(a, 0x7f80, begin, end);
    case Dtype::f16: return kv_compress_as<uint16_t>(a, 0x7c00, begin, end);
    default: return kv_compress_as<uint32_t>(a, 0x7f800000u, begin, end);
  }
}

}  // namespace
}  // namespace sparsecore
