// SPDX-License-Identifier: Apache-2.0
// bitmap_to_dense in plain loops: the floor for every CPU and the oracle in C++.
#include "ops/bitmap_to_dense/bitmap_to_dense.h"

namespace sparsecore::bitmap_to_dense {
namespace {

template <class Value, class Out, class Convert>
int64_t expand(const Args& a, int64_t begin, int64_t end, const Convert& convert) {
  const BitmapView& w = a.weight;
  const Value* values = static_cast<const Value*>(w.values);
  const int64_t words = bitmap_words(w.k);
  for (int64_t row = begin; row < end; ++row) {
    if (bitmap_check_row(w, row).fault != BitmapFault::none) return row;
    Out* out = static_cast<Out*>(a.dense) + row * w.k;
    for (int64_t c = 0; c < w.k; ++c) out[c] = 0;
    int64_t p = w.row_offsets[row];
    for (int64_t word = 0; word < words; ++word)
      for (uint64_t left = bitmap_word(w.row_bits(row), word); left != 0; left &= left - 1, ++p)
        out[word * 64 + __builtin_ctzll(left)] = convert(values[p], row);
  }
  return -1;
}

int64_t run(const Args& a, int64_t begin, int64_t end) {
  const auto same = [](auto value, int64_t) { return value; };
  switch (a.weight.value) {
    case Dtype::bf16:
    case Dtype::f16: return expand<uint16_t, uint16_t>(a, begin, end, same);
    case Dtype::i8:
      return expand<int8_t, float>(a, begin, end,
                                   [&](int8_t q, int64_t row) { return static_cast<float>(q) * a.weight.scales[row]; });
    default: return expand<float, float>(a, begin, end, same);
  }
}

}  // namespace

extern const Kernel kernel_scalar;
const Kernel kernel_scalar = {"bitmap_to_dense_scalar", cpu::Isa::scalar, run};

}  // namespace sparsecore::bitmap_to_dense
