// SPDX-License-Identifier: Apache-2.0
// kv_decompress on AVX-512 with VBMI2: vpexpandw or vpexpandd from memory, which reads as many values as bits are set.
#include <immintrin.h>

#include "ops/kv_decompress/kv_decompress.h"

namespace sparsecore::kv_decompress {
namespace {

SPARSECORE_INLINE void expand(const uint16_t* p, uint32_t word, uint32_t live, uint16_t* out) {
  _mm512_mask_storeu_epi16(out, live, _mm512_maskz_expandloadu_epi16(word, p));
}
SPARSECORE_INLINE void expand(const uint32_t* p, uint32_t word, uint32_t live, uint32_t* out) {
  const auto half = [](uint32_t m, int i) { return static_cast<__mmask16>(m >> 16 * i); };
  const uint32_t* const second = p + __builtin_popcount(word & 0xffff);
  _mm512_mask_storeu_epi32(out, half(live, 0), _mm512_maskz_expandloadu_epi32(half(word, 0), p));
  _mm512_mask_storeu_epi32(out + 16, half(live, 1), _mm512_maskz_expandloadu_epi32(half(word, 1), second));
}

template <class Number>
int64_t decompress_rows(const Args& a, int64_t begin, int64_t end) {
  const int64_t words = kv_words(a.head_dim);
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* const bits = a.bitmask + row * 4 * words;
    if (kv_population(bits, a.head_dim) != a.keep) return row;
    const Number* p = static_cast<const Number*>(a.values) + row * a.keep;
    Number* const out = static_cast<Number*>(a.dense) + row * a.head_dim;
    for (int64_t w = 0; w < words; ++w) {
      const uint32_t word = kv_word(bits, w);
      expand(p, word, w + 1 < words ? ~0u : ~kv_padding(a.head_dim), out + 32 * w);
      p += __builtin_popcount(word);
    }
  }
  return -1;
}

int64_t run(const Args& a, int64_t begin, int64_t end) {
  return dtype_bytes(a.value) == 4 ? decompress_rows<uint32_t>(a, begin, end)
                                   : decompress_rows<uint16_t>(a, begin, end);
}

}  // namespace

extern const Kernel kernel_avx512;
const Kernel kernel_avx512 = {"kv_decompress_avx512", cpu::Isa::avx512, run};

}  // namespace sparsecore::kv_decompress
