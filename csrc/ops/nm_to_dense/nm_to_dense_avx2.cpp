// SPDX-License-Identifier: Apache-2.0
// nm_to_dense on AVX2: the bits of 8 columns pick a shuffle that puts their values there, with zeros between.
#include <immintrin.h>

#include "core/nm.h"

namespace sparsecore::nm_to_dense {
namespace {

// Of the values of 8 columns, the one that goes to each; 0x80: none.
struct Ranks {
  alignas(8) uint8_t at[256][8];
  constexpr Ranks() : at() {
    for (int bits = 0; bits < 256; ++bits)
      for (int j = 0, rank = 0; j < 8; ++j) at[bits][j] = static_cast<uint8_t>(bits >> j & 1 ? rank++ : 0x80);
  }
};
constexpr Ranks kRanks;

SPARSECORE_INLINE __m128i ranks(uint64_t taken, int s) {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kRanks.at[taken >> 8 * s & 255]));
}

struct F32 {
  using Element = float;
  using Out = float;
  template <int n, int m>
  SPARSECORE_INLINE static void spread(uint64_t taken, const float* p, float, float* out) {
    for (int s = 0; s < 8; ++s) {
      const __m256i from = _mm256_cvtepi8_epi32(ranks(taken, s));
      const __m256 v = _mm256_permutevar8x32_ps(_mm256_loadu_ps(p + s * 8 * n / m), from);
      _mm256_storeu_ps(out + 8 * s, _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(from, 31)), v));
    }
  }
};

struct Half {
  using Element = uint16_t;
  using Out = uint16_t;
  template <int n, int m>
  SPARSECORE_INLINE static void spread(uint64_t taken, const uint16_t* p, float, uint16_t* out) {
    for (int s = 0; s < 8; ++s) {
      const __m128i rank = ranks(taken, s);  // byte pairs 2 rank, 2 rank + 1; from 0x80 on they stay there
      const __m128i twice = _mm_or_si128(_mm_add_epi8(rank, rank), _mm_and_si128(rank, _mm_set1_epi8(-128)));
      const __m128i from = _mm_unpacklo_epi8(twice, _mm_or_si128(twice, _mm_set1_epi8(1)));
      const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + s * 8 * n / m));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8 * s), _mm_shuffle_epi8(v, from));
    }
  }
};

struct I8 {
  using Element = int8_t;
  using Out = float;
  template <int n, int m>
  SPARSECORE_INLINE static void spread(uint64_t taken, const int8_t* p, float scale, float* out) {
    for (int s = 0; s < 8; ++s) {
      const __m128i from = ranks(taken, s);
      const __m128i v = _mm_shuffle_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + s * 8 * n / m)), from);
      const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)), _mm256_set1_ps(scale));
      // A column that stores nothing is 0 whatever the scale, infinity too.
      const __m256 none = _mm256_castsi256_ps(_mm256_srai_epi32(_mm256_cvtepi8_epi32(from), 31));
      _mm256_storeu_ps(out + 8 * s, _mm256_andnot_ps(none, scaled));
    }
  }
};

}  // namespace
}  // namespace sparsecore::nm_to_dense

#include "ops/nm_to_dense/nm_to_dense_simd.h"

namespace sparsecore::nm_to_dense {
extern const Kernel kernel_avx2;
const Kernel kernel_avx2 = {"nm_to_dense_avx2", cpu::Isa::avx2, run};
}  // namespace sparsecore::nm_to_dense
