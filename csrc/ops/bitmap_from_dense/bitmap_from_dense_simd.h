// SPDX-License-Identifier: Apache-2.0
// bitmap_from_dense loops, compiled once per ISA, 64 columns a step. Bits come from compares, values are
// packed in registers and stored whole: what lies past a step's last is written by the next. A row's last
// columns are read from a copy with zeros behind it; the last values of a range go through a copy too, as
// what follows them is another thread's.
#pragma once
#include "ops/bitmap_from_dense/bitmap_from_dense.h"

// The ISA's file has defined, before this header:
//   F32, B16, H16   numbers as they lie in memory, each one member wide
//   uint64_t nonzeros(const T* p)             bit j: p[j] is not +-0, j < 64
//   uint32_t largest(const T* p, uint32_t)    the largest magnitude of p[0..64) and of what is given, as fp32 bits
//   void pack_word(const T* p, uint64_t bits, float scale, To* out)   p[j] of set bits, as To (int8_t: of
//             p[j] / scale); writes up to kStep elements past the last
namespace sparsecore::bitmap_from_dense {
namespace {

constexpr int64_t kStep = 64;

template <class T>
struct Row {
  const T* w;
  int64_t k;
  T tail[kStep];
  Row(const Args& a, int64_t row) : w(static_cast<const T*>(a.w) + row * a.stride), k(a.k), tail() {
    if (k % kStep != 0) std::memcpy(tail, w + k / kStep * kStep, static_cast<size_t>(k % kStep) * sizeof(T));
  }
  SPARSECORE_INLINE const T* word(int64_t i) const { return (i + 1) * kStep <= k ? w + i * kStep : tail; }
};

template <class T>
inline void bits_of(const Args& a, int64_t begin, int64_t end) {
  const int64_t words = bitmap_words(a.k);
  for (int64_t row = begin; row < end; ++row) {
    const Row<T> w(a, row);
    uint8_t* out = a.bitmask + row * words * 8;
    int64_t count = 0;
    for (int64_t i = 0; i < words; ++i) {
      const uint64_t bits = nonzeros(w.word(i));
      std::memcpy(out + 8 * i, &bits, 8);
      count += __builtin_popcountll(bits);
    }
    a.row_offsets[row + 1] = count;
  }
}

template <class T, class To>
inline void pack_rows(const Args& a, int64_t begin, int64_t end) {
  const int64_t words = bitmap_words(a.k);
  To* const values = static_cast<To*>(a.values);
  To* const last = values + a.row_offsets[end];
  for (int64_t row = begin; row < end; ++row) {
    const Row<T> w(a, row);
    float scale = 1.0f;
    if (a.scales) {
      uint32_t magnitude = 0;
      for (int64_t i = 0; i < words; ++i) magnitude = largest(w.word(i), magnitude);
      scale = a.scales[row] = row_scale(magnitude);
      if (!usable_scale(scale)) scale = bits_to_f32(0x7f800000u);  // x / infinity is 0, or NaN, which packs as 0
    }
    To* out = values + a.row_offsets[row];
    for (int64_t i = 0; i < words; ++i) {
      const uint64_t bits = bitmap_word(a.bitmask, row * words + i);
      const int count = __builtin_popcountll(bits);
      if (last - out >= 2 * kStep) {
        pack_word(w.word(i), bits, scale, out);
      } else {
        To stage[2 * kStep];
        pack_word(w.word(i), bits, scale, stage);
        if (count > 0) std::memcpy(out, stage, static_cast<size_t>(count) * sizeof(To));
      }
      out += count;
    }
  }
}

template <class T>
inline void pack_from(const Args& a, int64_t begin, int64_t end) {
  switch (a.to) {
    case Dtype::bf16: return pack_rows<T, B16>(a, begin, end);
    case Dtype::f16: return pack_rows<T, H16>(a, begin, end);
    case Dtype::i8: return pack_rows<T, int8_t>(a, begin, end);
    default: return pack_rows<T, F32>(a, begin, end);
  }
}

void bits(const Args& a, int64_t begin, int64_t end) {
  if (a.from == Dtype::f32) bits_of<F32>(a, begin, end);
  else bits_of<B16>(a, begin, end);
}

void pack(const Args& a, int64_t begin, int64_t end) {
  switch (a.from) {
    case Dtype::bf16: return pack_from<B16>(a, begin, end);
    case Dtype::f16: return pack_from<H16>(a, begin, end);
    default: return pack_from<F32>(a, begin, end);
  }
}

}  // namespace
}  // namespace sparsecore::bitmap_from_dense
