// SPDX-License-Identifier: Apache-2.0
// bitmap_to_dense on AVX2, which has no expand: a byte of bits picks a permutation from a table, 8 columns a
// step.
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

// Entry m, byte j: how many bits of m lie below j where j is set, else 0x80 (a sign to make zero of).
alignas(64) constexpr struct Ranks {
  uint8_t at[256][8];
  constexpr Ranks() : at() {
    for (unsigned m = 0; m < 256; ++m) {
      unsigned rank = 0;
      for (unsigned j = 0; j < 8; ++j) at[m][j] = static_cast<uint8_t>(m >> j & 1 ? rank++ : 0x80);
    }
  }
} kRanks;

SPARSECORE_INLINE __m128i ranks(uint64_t byte) {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kRanks.at[byte]));
}

inline void expand_word(const F32* p, uint64_t bits, float, F32* out) {
  for (int s = 0; s < 8; ++s) {
    const uint64_t here = bits >> 8 * s & 255;
    const __m256i rank = _mm256_cvtepi8_epi32(ranks(here));
    const __m256i v = _mm256_permutevar8x32_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), rank);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 8 * s), _mm256_andnot_si256(_mm256_srai_epi32(rank, 31), v));
    p += __builtin_popcountll(here);
  }
}
inline void expand_word(const B16* p, uint64_t bits, float, B16* out) {
  for (int s = 0; s < 8; ++s) {
    const uint64_t here = bits >> 8 * s & 255;
    const __m128i rank = ranks(here), twice = _mm_add_epi8(rank, _mm_and_si128(rank, _mm_set1_epi8(0x7f)));
    const __m128i at = _mm_add_epi8(_mm_unpacklo_epi8(twice, twice), _mm_set1_epi16(0x0100));
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8 * s), _mm_shuffle_epi8(v, at));
    p += __builtin_popcountll(here);
  }
}
inline void expand_word(const int8_t* p, uint64_t bits, float scale, F32* out) {
  for (int s = 0; s < 8; ++s) {
    const uint64_t here = bits >> 8 * s & 255;
    const __m128i rank = ranks(here), v = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m256 q = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_shuffle_epi8(v, rank)));
    const __m256 none = _mm256_castsi256_ps(_mm256_srai_epi32(_mm256_cvtepi8_epi32(rank), 31));
    _mm256_storeu_ps(reinterpret_cast<float*>(out + 8 * s),
                     _mm256_andnot_ps(none, _mm256_mul_ps(q, _mm256_set1_ps(scale))));
    p += __builtin_popcountll(here);
  }
}

}  // namespace
}  // namespace sparsecore::bitmap_to_dense

#include "ops/bitmap_to_dense/bitmap_to_dense_simd.h"

namespace sparsecore::bitmap_to_dense {
extern const Kernel kernel_avx2;
const Kernel kernel_avx2 = {"bitmap_to_dense_avx2", cpu::Isa::avx2, run};
}  // namespace sparsecore::bitmap_to_dense
