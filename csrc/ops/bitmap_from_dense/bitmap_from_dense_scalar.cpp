// SPDX-License-Identifier: Apache-2.0
// bitmap_from_dense in plain loops: the floor for every CPU and the oracle in C++.
#include "ops/bitmap_from_dense/bitmap_from_dense.h"

namespace sparsecore::bitmap_from_dense {
namespace {

// |q| <= 127.5: the sum with 1.5 * 2^23 rounds at 1, ties to even.
int8_t rounded(float q) { return static_cast<int8_t>(static_cast<int32_t>(q + 0x1.8p23f - 0x1.8p23f)); }

bool nonzero(float w) { return (f32_to_bits(w) & 0x7fffffffu) != 0; }
bool nonzero(uint16_t w) { return (w & 0x7fff) != 0; }

template <class T>
void bits_of(const Args& a, int64_t begin, int64_t end) {
  const int64_t words = bitmap_words(a.k);
  for (int64_t row = begin; row < end; ++row) {
    const T* w = static_cast<const T*>(a.w) + row * a.stride;
    int64_t count = 0;
    for (int64_t word = 0; word < words; ++word) {
      const int64_t live = a.k - word * 64 < 64 ? a.k - word * 64 : 64;
      uint64_t bits = 0;
      for (int64_t j = 0; j < live; ++j) bits |= static_cast<uint64_t>(nonzero(w[word * 64 + j])) << j;
      std::memcpy(a.bitmask + (row * words + word) * 8, &bits, 8);
      count += __builtin_popcountll(bits);
    }
    a.row_offsets[row + 1] = count;
  }
}

// fn(column, place) for every stored element of a row.
template <class Fn>
SPARSECORE_INLINE void stored(const Args& a, int64_t row, const Fn& fn) {
  const int64_t words = bitmap_words(a.k);
  int64_t p = a.row_offsets[row];
  for (int64_t word = 0; word < words; ++word)
    for (uint64_t left = bitmap_word(a.bitmask, row * words + word); left != 0; left &= left - 1, ++p)
      fn(word * 64 + __builtin_ctzll(left), p);
}

void bits(const Args& a, int64_t begin, int64_t end) {
  if (a.from == Dtype::f32) bits_of<float>(a, begin, end);
  else bits_of<uint16_t>(a, begin, end);
}

void pack(const Args& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const auto at = [&](int64_t column) { return load_f32(a.w, a.from, row * a.stride + column); };
    if (a.to != Dtype::i8) {
      stored(a, row, [&](int64_t column, int64_t p) { store_f32(a.values, a.to, p, at(column)); });
      continue;
    }
    uint32_t largest = 0;
    stored(a, row, [&](int64_t column, int64_t) {
      const uint32_t magnitude = f32_to_bits(at(column)) & 0x7fffffffu;
      if (magnitude > largest) largest = magnitude;
    });
    const float scale = a.scales[row] = row_scale(largest);
    int8_t* values = static_cast<int8_t*>(a.values);
    const bool usable = usable_scale(scale);
    stored(a, row, [&](int64_t column, int64_t p) { values[p] = usable ? rounded(at(column) / scale) : int8_t{0}; });
  }
}

}  // namespace

extern const Kernel kernel_scalar;
const Kernel kernel_scalar = {"bitmap_from_dense_scalar", cpu::Isa::scalar, bits, pack};

}  // namespace sparsecore::bitmap_from_dense
