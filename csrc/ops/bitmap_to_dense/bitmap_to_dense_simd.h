// SPDX-License-Identifier: Apache-2.0
// bitmap_to_dense loops, compiled once per ISA, 64 columns a step: values are spread in registers, so a row
// is written once, zeros and all. The last values of the array and the last columns of a row go through
// copies, as steps read and write whole registers.
#pragma once
#include "ops/bitmap_to_dense/bitmap_to_dense.h"

// The ISA's file has defined, before this header:
//   void expand_word(const V* p, uint64_t bits, float scale, Out* out)   out[0..64): 0, or the next of p where
//       the bit is set (int8_t: times scale); reads up to p + kStep. V, Out: F32, B16; int8_t to F32
namespace sparsecore::bitmap_to_dense {
namespace {

constexpr int64_t kStep = 64;

template <class V, class Out>
inline int64_t expand_rows(const Args& a, int64_t begin, int64_t end) {
  const BitmapView& w = a.weight;
  const V* const values = static_cast<const V*>(w.values);
  const int64_t words = bitmap_words(w.k);
  for (int64_t row = begin; row < end; ++row) {
    if (bitmap_check_row(w, row).fault != BitmapFault::none) return row;
    const uint8_t* mask = w.row_bits(row);
    const float scale = w.scales ? w.scales[row] : 1.0f;
    Out* out = static_cast<Out*>(a.dense) + row * w.k;
    int64_t p = w.row_offsets[row];
    for (int64_t i = 0; i < words; ++i, out += kStep) {
      const uint64_t bits = bitmap_word(mask, i);
      const int64_t count = __builtin_popcountll(bits), columns = w.k - i * kStep;
      V in[kStep];
      const V* from = values + p;
      if (w.nnz - p < kStep) {
        if (count > 0) std::memcpy(in, from, static_cast<size_t>(count) * sizeof(V));
        from = in;
      }
      if (columns >= kStep) {
        expand_word(from, bits, scale, out);
      } else {
        Out last[kStep];
        expand_word(from, bits, scale, last);
        std::memcpy(out, last, static_cast<size_t>(columns) * sizeof(Out));
      }
      p += count;
    }
  }
  return -1;
}

int64_t run(const Args& a, int64_t begin, int64_t end) {
  switch (a.weight.value) {
    case Dtype::bf16:
    case Dtype::f16: return expand_rows<B16, B16>(a, begin, end);
    case Dtype::i8: return expand_rows<int8_t, F32>(a, begin, end);
    default: return expand_rows<F32, F32>(a, begin, end);
  }
}

}  // namespace
}  // namespace sparsecore::bitmap_to_dense
