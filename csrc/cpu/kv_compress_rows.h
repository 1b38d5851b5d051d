// SPDX-License-Identifier: Apache-2.0
// Dense rows of K or V to bits and values, in loops that are compiled once per ISA. A row's keys are its magnitudes as
// integers, with weights those of the products in float32; the least key that is kept is found bit by bit from the
// highest, each time by counting the keys that reach it: 15 counts of 16-bit keys or 31 of 32-bit ones, which compilers
// turn into a compare and a subtraction a register. ops/kv_compress/kv_compress.h has the rule and its cost.
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
  const float* weight;  // [head_dim], of every row; null: 1
};

constexpr int64_t kKvMost = 256;  // channels

inline void kv_keys(const KvRows& a, const uint16_t* x, uint16_t* keys) {
  const uint16_t infinity = static_cast<uint16_t>(kv_infinity(a.value));
  for (int64_t c = 0; c < a.head_dim; ++c) {
    const uint16_t key = x[c] & 0x7fff;
    keys[c] = key > infinity ? static_cast<uint16_t>(infinity + 1) : key;
  }
}
inline void kv_keys(const KvRows& a, const uint32_t* x, uint32_t* keys) {
  for (int64_t c = 0; c < a.head_dim; ++c) {
    const uint32_t bits = a.weight ? f32_to_bits(bits_to_f32(x[c]) * a.weight[c]) : x[c], key = bits & 0x7fffffffu;
    keys[c] = key > 0x7f800000u ? 0x7f800001u : key;
  }
}
// With weights.
inline void kv_keys(const KvRows& a, const uint16_t* x, uint32_t* keys) {
  alignas(64) uint32_t wide[kKvMost];
  if (a.value == Dtype::bf16)
    for (int64_t c = 0; c < a.head_dim; ++c) wide[c] = f32_to_bits(bf16_to_f32(x[c]));
  else
    for (int64_t c = 0; c < a.head_dim; ++c) wide[c] = f32_to_bits(f16_to_f32(x[c]));
  kv_keys(a, wide, keys);
}

// Number is the integer type of a value's bits, Key that of what is compared.
template <class Number, class Key>
void kv_compress_as(const KvRows& a, int64_t begin, int64_t end) {
  const int64_t d = a.head_dim, words = kv_words(d), padded = 32 * words;
  for (int64_t row = begin; row < end; ++row) {
    const Number* const x = static_cast<const Number*>(a.x) + row * a.stride;
    alignas(64) Key keys[kKvMost];
    kv_keys(a, x, keys);
    for (int64_t c = d; c < padded; ++c) keys[c] = 0;  // below every bound that is counted
    Key least = 0;
    for (int bit = 8 * static_cast<int>(sizeof(Key)) - 2; bit >= 0; --bit) {
      const Key bound = static_cast<Key>(least | Key{1} << bit);
      Key count = 0;
      for (int64_t c = 0; c < padded; ++c) count = static_cast<Key>(count + (keys[c] >= bound));
      if (static_cast<int64_t>(count) >= a.keep) least = bound;
    }
    Key above = 0;
    for (int64_t c = 0; c < padded; ++c) above = static_cast<Key>(above + (keys[c] > least));
    int64_t ties = a.keep - static_cast<int64_t>(above);
    // A store a channel, whether it is kept or not: no branch.
    Number kept[kKvMost + 1];
    int64_t at = 0;
    for (int64_t w = 0; w < words; ++w) {
      uint32_t word = 0;
      const int64_t first = 32 * w, last = d - first < 32 ? d - first : 32;
      for (int64_t j = 0; j < last; ++j) {
        const Key key = keys[first + j];
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
  if (a.value == Dtype::f32) return kv_compress_as<uint32_t, uint32_t>(a, begin, end);
  return a.weight ? kv_compress_as<uint16_t, uint32_t>(a, begin, end)
                  : kv_compress_as<uint16_t, uint16_t>(a, begin, end);
}

}  // namespace
}  // namespace sparsecore
