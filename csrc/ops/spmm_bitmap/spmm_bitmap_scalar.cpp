// SPDX-License-Identifier: Apache-2.0
// spmm_bitmap in plain loops: the floor for every CPU and the oracle in C++.
#include "ops/spmm_bitmap/spmm_bitmap.h"

namespace sparsecore::spmm_bitmap {
namespace {

Plan plan(const Linear&, const BitmapView&) { return {}; }
void pack(const Args&, int64_t, int64_t) {}

int64_t run(const Args& a, int64_t begin, int64_t end, void*) {
  const Linear& d = a.dense;
  const BitmapView& w = a.weight;
  const int64_t words = bitmap_words(w.k);
  for (int64_t row = begin; row < end; ++row) {
    if (bitmap_check_row(w, row).fault != BitmapFault::none) return row;
    const uint8_t* bits = w.row_bits(row);
    const float b = d.bias ? load_f32(d.bias, d.dtype, row) : 0.0f;
    const float scale = w.scales ? w.scales[row] : 1.0f;
    for (int64_t i = 0; i < d.m; ++i) {
      float sum = 0.0f;
      int64_t p = w.row_offsets[row];
      for (int64_t word = 0; word < words; ++word)
        for (uint64_t left = bitmap_word(bits, word); left != 0; left &= left - 1, ++p)
          sum += load_f32(w.values, w.value, p) *
                 load_f32(d.x, d.dtype, i * d.x_stride + word * 64 + __builtin_ctzll(left));
      store_f32(d.y, d.dtype, i * d.y_stride + row, sum * scale + b);
    }
  }
  return -1;
}

}  // namespace

extern const Kernel kernel_scalar;
const Kernel kernel_scalar = {"spmm_bitmap_scalar", cpu::Isa::scalar, plan, pack, run};

}  // namespace sparsecore::spmm_bitmap
