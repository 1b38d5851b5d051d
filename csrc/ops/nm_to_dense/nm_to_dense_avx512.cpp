// SPDX-License-Identifier: Apache-2.0
// nm_to_dense on AVX-512: vpexpand puts the values of 16, 32 or 64 columns at their bits, with zeros between.
#include <immintrin.h>

#include "core/nm.h"

namespace sparsecore::nm_to_dense {
namespace {

struct F32 {
  using Element = float;
  using Out = float;
  template <int n, int m>
  SPARSECORE_INLINE static void spread(uint64_t taken, const float* p, float, float* out) {
    constexpr int kValues = 16 * n / m;
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      const __m512 v = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1 << kValues) - 1), p + s * kValues);
      _mm512_storeu_ps(out + 16 * s, _mm512_maskz_expand_ps(static_cast<__mmask16>(taken >> 16 * s), v));
    }
  }
};

struct Half {
  using Element = uint16_t;
  using Out = uint16_t;
  template <int n, int m>
  SPARSECORE_INLINE static void spread(uint64_t taken, const uint16_t* p, float, uint16_t* out) {
    constexpr int kValues = 32 * n / m;
#pragma GCC unroll 2
    for (int s = 0; s < 2; ++s) {
      const __m512i v = _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << kValues) - 1), p + s * kValues);
      _mm512_storeu_si512(out + 32 * s, _mm512_maskz_expand_epi16(static_cast<__mmask32>(taken >> 32 * s), v));
    }
  }
};

struct I8 {
  using Element = int8_t;
  using Out = float;
  template <int n, int m>
  SPARSECORE_INLINE static void spread(uint64_t taken, const int8_t* p, float scale, float* out) {
    constexpr int kValues = 64 * n / m;
    const __m512i v = _mm512_maskz_expand_epi8(taken, _mm512_maskz_loadu_epi8((uint64_t{1} << kValues) - 1, p));
    alignas(64) int8_t bytes[64];
    _mm512_store_si512(bytes, v);
    const __m512 by = _mm512_set1_ps(scale);
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      const __m512i wide = _mm512_cvtepi8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes + 16 * s)));
      // A column that stores nothing is 0 whatever the scale, infinity too.
      const __mmask16 there = static_cast<__mmask16>(taken >> 16 * s);
      _mm512_storeu_ps(out + 16 * s, _mm512_maskz_mul_ps(there, _mm512_cvtepi32_ps(wide), by));
    }
  }
};

}  // namespace
}  // namespace sparsecore::nm_to_dense

#include "ops/nm_to_dense/nm_to_dense_simd.h"

namespace sparsecore::nm_to_dense {
extern const Kernel kernel_avx512;
const Kernel kernel_avx512 = {"nm_to_dense_avx512", cpu::Isa::avx512, run};
}  // namespace sparsecore::nm_to_dense
