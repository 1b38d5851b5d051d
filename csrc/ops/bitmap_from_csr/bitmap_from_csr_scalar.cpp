// SPDX-License-Identifier: Apache-2.0
// bitmap_from_csr in plain loops, for every CPU: a word is gathered in a register and written once.
#include "ops/bitmap_from_csr/bitmap_from_csr.h"

namespace sparsecore::bitmap_from_csr {
namespace {

template <class Index>
int64_t bits(const Args& a, int64_t begin, int64_t end) {
  const CsrView& w = a.pattern;
  const Index *crow = static_cast<const Index*>(w.crow), *col = static_cast<const Index*>(w.col);
  const int64_t words = bitmap_words(w.k);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = crow[row], last = crow[row + 1];
    if (first < 0 || first > last || last > w.nnz) return row;
    uint8_t* const out = a.bitmask + row * words * 8;
    int64_t p = first, before = -1;
    for (int64_t word = 0; word < words; ++word) {
      uint64_t here = 0;
      for (; p < last && col[p] < (word + 1) * 64 && col[p] < w.k; ++p) {
        if (col[p] <= before) return row;
        before = col[p];
        here |= uint64_t{1} << (before % 64);
      }
      std::memcpy(out + word * 8, &here, 8);
    }
    if (p < last) return row;  // a column at or past k
  }
  return -1;
}

int64_t run(const Args& a, int64_t begin, int64_t end) {
  return a.pattern.index == Dtype::i32 ? bits<int32_t>(a, begin, end) : bits<int64_t>(a, begin, end);
}

}  // namespace

extern const Kernel kernel_scalar;
const Kernel kernel_scalar = {"bitmap_from_csr_scalar", cpu::Isa::scalar, run};

}  // namespace sparsecore::bitmap_from_csr
