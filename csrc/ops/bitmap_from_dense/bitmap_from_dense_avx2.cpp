// SPDX-License-Identifier: Apache-2.0
// bitmap_from_dense on AVX2, which has no compress: a byte of bits picks a permutation from a table, 8
// numbers a step, widened to fp32 and rounded back (exact where the dtype stays).
#include <immintrin.h>

#include "ops/bitmap_from_dense/bitmap_from_dense.h"

namespace sparsecore::bitmap_from_dense {
namespace {

struct F32 {
  uint32_t number;
};
struct B16 {
  uint16_t number;
};
struct H16 {
  uint16_t number;
};

// Entry m: positions of m's set bits, in order.
alignas(64) constexpr struct Positions {
  uint8_t at[256][8];
  constexpr Positions() : at() {
    for (unsigned m = 0; m < 256; ++m) {
      unsigned rank = 0;
      for (unsigned j = 0; j < 8; ++j)
        if (m >> j & 1) at[m][rank++] = static_cast<uint8_t>(j);
    }
  }
} kPositions;

SPARSECORE_INLINE __m128i load_8(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
SPARSECORE_INLINE __m256i load_32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
SPARSECORE_INLINE __m256 load(const F32* p) { return _mm256_castsi256_ps(load_32(p)); }
SPARSECORE_INLINE __m256 load(const B16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_8(p)), 16));
}
SPARSECORE_INLINE __m256 load(const H16* p) { return _mm256_cvtph_ps(load_8(p)); }

// Shifted left by one, a number is 0 where it was +-0.
inline uint64_t nonzeros(const F32* p) {
  uint64_t zeros = 0;
  for (int s = 0; s < 8; ++s) {
    const __m256i zero = _mm256_cmpeq_epi32(_mm256_slli_epi32(load_32(p + 8 * s), 1), _mm256_setzero_si256());
    zeros |= static_cast<uint64_t>(_mm256_movemask_ps(_mm256_castsi256_ps(zero))) << 8 * s;
  }
  return ~zeros;
}
inline uint64_t nonzeros(const B16* p) {
  uint64_t zeros = 0;
  for (int s = 0; s < 2; ++s) {
    const auto zero = [&](int i) {
      return _mm256_cmpeq_epi16(_mm256_slli_epi16(load_32(p + 32 * s + 16 * i), 1), _mm256_setzero_si256());
    };
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(zero(0), zero(1)), 0xd8);
    zeros |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(bytes))) << 32 * s;
  }
  return ~zeros;
}

template <class T>
inline uint32_t largest(const T* p, uint32_t so_far) {
  __m256i most = _mm256_set1_epi32(static_cast<int>(so_far));
  for (int s = 0; s < 64; s += 8)
    most = _mm256_max_epu32(most, _mm256_and_si256(_mm256_castps_si256(load(p + s)), _mm256_set1_epi32(0x7fffffff)));
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1))));
}

SPARSECORE_INLINE __m128i halves(__m256i v) {  // the low 16 bits of 8 lanes, which hold no more
  return _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}
SPARSECORE_INLINE void store(F32* out, __m256 v, float) { _mm256_storeu_ps(reinterpret_cast<float*>(out), v); }
SPARSECORE_INLINE void store(B16* out, __m256 v, float) {
  const __m256i bits = _mm256_castps_si256(v),
                odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i near = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 kept =
      _mm256_blendv_ps(_mm256_castsi256_ps(near), _mm256_castsi256_ps(quiet), _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), halves(_mm256_srli_epi32(_mm256_castps_si256(kept), 16)));
}
SPARSECORE_INLINE void store(H16* out, __m256 v, float) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// NaN converts to 0x80000000, whose low byte is 0.
SPARSECORE_INLINE void store(int8_t* out, __m256 v, float scale) {
  const __m256i q = _mm256_cvtps_epi32(_mm256_div_ps(v, _mm256_set1_ps(scale)));
  const __m128i low = halves(_mm256_and_si256(q, _mm256_set1_epi32(0xff)));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(low, low));
}

template <class T, class To>
inline void pack_word(const T* p, uint64_t bits, float scale, To* out) {
  for (int s = 0; s < 8; ++s) {
    const uint64_t here = bits >> 8 * s & 255;
    const __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPositions.at[here])));
    store(out, _mm256_permutevar8x32_ps(load(p + 8 * s), order), scale);
    out += __builtin_popcountll(here);
  }
}

}  // namespace
}  // namespace sparsecore::bitmap_from_dense

#include "ops/bitmap_from_dense/bitmap_from_dense_simd.h"

namespace sparsecore::bitmap_from_dense {
extern const Kernel kernel_avx2;
const Kernel kernel_avx2 = {"bitmap_from_dense_avx2", cpu::Isa::avx2, bits, pack};
}  // namespace sparsecore::bitmap_from_dense
