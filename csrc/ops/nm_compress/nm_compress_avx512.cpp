// SPDX-License-Identifier: Apache-2.0
// nm_compress on AVX-512: a column's rank in its group is how many of the m - 1 others, met by rotations within the
// group, are larger, or as large and before it; 4 uops a rotation for 16 columns. Columns of rank below n are kept:
// vpcompressps packs their values.
#include <immintrin.h>

#include "ops/nm_compress/nm_compress_rows.h"

namespace sparsecore::nm_compress {
namespace {

SPARSECORE_INLINE __m512 load(const Args& a, int64_t i) {
  const auto half = [&] {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(a.w) + i));
  };
  if (a.from == Dtype::f32) return _mm512_loadu_ps(static_cast<const float*>(a.w) + i);
  if (a.from == Dtype::f16) return _mm512_cvtph_ps(half());
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half()), 16));
}

// The first `count` of 16 values, to nearest even.
SPARSECORE_INLINE void store(const Args& a, int64_t i, __m512 v, int count) {
  const __mmask16 live = static_cast<__mmask16>((1u << count) - 1);
  if (a.to == Dtype::f32) return _mm512_mask_storeu_ps(static_cast<float*>(a.values) + i, live, v);
  __m256i h;
  if (a.to == Dtype::f16) {
    h = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  } else {
    const __m512i bits = _mm512_castps_si512(v),
                  odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i near = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i kept =
        _mm512_mask_or_epi32(near, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), bits, _mm512_set1_epi32(0x400000));
    h = _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
  }
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(a.values) + i, live, h);
}

// Rotation t: lane j of a group meets column (j + t) % m of it, which wins a tie where it wraps around.
template <int m>
struct Rotations {
  alignas(64) uint32_t lane[m][16], first[m][16];
  constexpr Rotations() : lane(), first() {
    for (int t = 1; t < m; ++t)
      for (int j = 0; j < 16; ++j) {
        lane[t][j] = static_cast<uint32_t>(j / m * m + (j + t) % m);
        first[t][j] = (j % m + t) >= m;
      }
  }
};

// Bits of the n columns of each group that are kept.
template <int n, int m>
SPARSECORE_INLINE uint32_t kept(__m512 w) {
  static constexpr Rotations<m> rotations;
  // Twice the key: a tie is decided by the bit that is left.
  const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(w), _mm512_set1_epi32(0x7fffffff));
  const __m512i key = _mm512_slli_epi32(_mm512_min_epu32(magnitude, _mm512_set1_epi32(static_cast<int>(kNan))), 1);
  __m512i rank = _mm512_setzero_si512();
#pragma GCC unroll 16
  for (int t = 1; t < m; ++t) {
    const __m512i other = _mm512_permutexvar_epi32(_mm512_load_si512(rotations.lane[t]), key);
    const __m512i met = _mm512_or_si512(other, _mm512_load_si512(rotations.first[t]));
    rank = _mm512_mask_add_epi32(rank, _mm512_cmpgt_epu32_mask(met, key), rank, _mm512_set1_epi32(1));
  }
  return _mm512_cmplt_epu32_mask(rank, _mm512_set1_epi32(n));
}

struct Word {
  static constexpr int widest = 16;
  template <int n, int m>
  SPARSECORE_INLINE static uint64_t largest(const Args& a, int64_t i) {
    uint64_t taken = 0;
    for (int s = 0; s < 64; s += 16) taken |= static_cast<uint64_t>(kept<n, m>(load(a, i + s))) << s;
    return taken;
  }
  SPARSECORE_INLINE static uint64_t selected(const uint8_t* mask) {
    const __m512i bytes = _mm512_loadu_si512(mask);
    return _mm512_test_epi8_mask(bytes, bytes);
  }
  template <int n, int m>
  SPARSECORE_INLINE static void pack(const Args& a, int64_t at, int64_t i, uint64_t taken) {
    constexpr int kValues = 16 * n / m;
    for (int s = 0; s < 4; ++s)
      store(a, at + s * kValues, _mm512_maskz_compress_ps(static_cast<__mmask16>(taken >> 16 * s), load(a, i + 16 * s)),
            kValues);
  }
};

}  // namespace
}  // namespace sparsecore::nm_compress

#include "ops/nm_compress/nm_compress_simd.h"

namespace sparsecore::nm_compress {
extern const Kernel kernel_avx512;
const Kernel kernel_avx512 = {"nm_compress_avx512", cpu::Isa::avx512, run};
}  // namespace sparsecore::nm_compress
