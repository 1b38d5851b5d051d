// SPDX-License-Identifier: Apache-2.0
// bitmap_to_csr in plain loops: the floor for every CPU and the oracle in C++.
#include "ops/bitmap_to_csr/bitmap_to_csr.h"

namespace sparsecore::bitmap_to_csr {
namespace {

template <class Index>
int64_t columns(const Args& a, int64_t begin, int64_t end) {
  const BitmapView& w = a.pattern;
  const int64_t words = bitmap_words(w.k);
  for (int64_t row = begin; row < end; ++row) {
    if (bitmap_check_row(w, row).fault != BitmapFault::none) return row;
    Index* out = static_cast<Index*>(a.col) + w.row_offsets[row];
    for (int64_t word = 0; word < words; ++word)
      for (uint64_t left = bitmap_word(w.row_bits(row), word); left != 0; left &= left - 1)
        *out++ = static_cast<Index>(word * 64 + __builtin_ctzll(left));
  }
  return -1;
}

int64_t run(const Args& a, int64_t begin, int64_t end) {
  return a.index == Dtype::i32 ? columns<int32_t>(a, begin, end) : columns<int64_t>(a, begin, end);
}

}  // namespace

extern const Kernel kernel_scalar;
const Kernel kernel_scalar = {"bitmap_to_csr_scalar", cpu::Isa::scalar, run};

}  // namespace sparsecore::bitmap_to_csr
