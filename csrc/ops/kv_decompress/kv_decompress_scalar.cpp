// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_decompress/kv_decompress.h"

namespace sparsecore::kv_decompress {
namespace {

template <class Number>
int64_t decompress_rows(const Args& a, int64_t begin, int64_t end) {
  const int64_t words = kv_words(a.head_dim);
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* const bits = a.bitmask + row * 4 * words;
    if (kv_population(bits, a.head_dim) != a.keep) return row;
    const Number* p = static_cast<const Number*>(a.values) + row * a.keep;
    Number* const out = static_cast<Number*>(a.dense) + row * a.head_dim;
    for (int64_t c = 0; c < a.head_dim; ++c) out[c] = bits[c / 8] >> c % 8 & 1 ? *p++ : Number{0};
  }
  return -1;
}

int64_t run(const Args& a, int64_t begin, int64_t end) {
  return dtype_bytes(a.value) == 4 ? decompress_rows<uint32_t>(a, begin, end)
                                   : decompress_rows<uint16_t>(a, begin, end);
}

}  // namespace

extern const Kernel kernel_scalar;
const Kernel kernel_scalar = {"kv_decompress_scalar", cpu::Isa::scalar, run};

}  // namespace sparsecore::kv_decompress
