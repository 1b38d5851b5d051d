// SPDX-License-Identifier: Apache-2.0
// bitmap_to_dense on AVX-512 with VBMI2: vpexpand puts 16, 32 or 64 columns in place.
#include <immintrin.h>

#include "ops/bitmap_to_dense/bitmap_to_dense.h"

namespace sparsecore::bitmap_to_dense {
namespace {

struct F32 {
  float number;
};
struct B16 {
  uint16_t number;
};

inline void expand_word(const F32* p, uint64_t bits, float, F32* out) {
  for (int s = 0; s < 4; ++s) {
    const uint32_t here = static_cast<uint16_t>(bits >> 16 * s);
    _mm512_storeu_ps(out + 16 * s, _mm512_maskz_expandloadu_ps(static_cast<__mmask16>(here), p));
    p += __builtin_popcount(here);
  }
}
inline void expand_word(const B16* p, uint64_t bits, float, B16* out) {
  const uint32_t low = static_cast<uint32_t>(bits), high = static_cast<uint32_t>(bits >> 32);
  _mm512_storeu_si512(out, _mm512_maskz_expandloadu_epi16(low, p));
  _mm512_storeu_si512(out + 32, _mm512_maskz_expandloadu_epi16(high, p + __builtin_popcount(low)));
}
inline void expand_word(const int8_t* p, uint64_t bits, float scale, F32* out) {
  alignas(64) int8_t spread[64];
  _mm512_store_si512(spread, _mm512_maskz_expandloadu_epi8(bits, p));
  for (int s = 0; s < 64; s += 16) {
    const __m512i q = _mm512_cvtepi8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(spread + s)));
    const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(q), _mm512_set1_ps(scale));
    _mm512_storeu_ps(out + s, _mm512_maskz_mov_ps(static_cast<__mmask16>(bits >> s), product));
  }
}

}  // namespace
}  // namespace sparsecore::bitmap_to_dense

#include "ops/bitmap_to_dense/bitmap_to_dense_simd.h"

namespace sparsecore::bitmap_to_dense {
extern const Kernel kernel_avx512;
const Kernel kernel_avx512 = {"bitmap_to_dense_avx512", cpu::Isa::avx512, run};
}  // namespace sparsecore::bitmap_to_dense
