// SPDX-License-Identifier: Apache-2.0
// nm_compress on AVX2: as on AVX-512, a column's rank in its group is how many of the others, met by rotations within
// the group, are larger, or as large and before it; 5 uops a rotation for 8 columns. A table of permutations packs the
// values of those of rank below n. 1:16 goes through the plain loops.
#include <immintrin.h>

#include "ops/nm_compress/nm_compress_rows.h"

namespace sparsecore::nm_compress {
namespace {

SPARSECORE_INLINE __m256 load(const Args& a, int64_t i) {
  if (a.from == Dtype::f32) return _mm256_loadu_ps(static_cast<const float*>(a.w) + i);
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(a.w) + i));
  if (a.from == Dtype::f16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// The first `count` of 8 values, to nearest even.
template <int count>
SPARSECORE_INLINE void store(const Args& a, int64_t i, __m256 v) {
  if (a.to == Dtype::f32) {
    alignas(32) float out[8];
    _mm256_store_ps(out, v);
    std::memcpy(static_cast<float*>(a.values) + i, out, count * 4);
    return;
  }
  __m128i h;
  if (a.to == Dtype::f16) {
    h = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  } else {
    const __m256i bits = _mm256_castps_si256(v),
                  odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i near = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i any = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i wide = _mm256_srli_epi32(_mm256_blendv_epi8(near, nan, any), 16);
    h = _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  }
  alignas(16) uint16_t out[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(out), h);
  std::memcpy(static_cast<uint16_t*>(a.values) + i, out, count * 2);
}

// Rotation t: lane j of a group meets column (j + t) % m of it, which wins a tie where it wraps around.
template <int m>
struct Rotations {
  alignas(64) uint32_t lane[m][8], first[m][8];
  constexpr Rotations() : lane(), first() {
    for (int t = 1; t < m; ++t)
      for (int j = 0; j < 8; ++j) {
        lane[t][j] = static_cast<uint32_t>(j / m * m + (j + t) % m);
        first[t][j] = (j % m + t) >= m;
      }
  }
};

// The columns whose bits are set, then any.
struct Places {
  alignas(8) uint8_t at[256][8];
  constexpr Places() : at() {
    for (int bits = 0; bits < 256; ++bits)
      for (int j = 0, n = 0; j < 8; ++j)
        if (bits >> j & 1) at[bits][n++] = static_cast<uint8_t>(j);
  }
};
constexpr Places kPlaces;

// Bits of the n columns of each group that are kept, of 8 columns.
template <int n, int m>
SPARSECORE_INLINE uint32_t kept(__m256 w) {
  static constexpr Rotations<m> rotations;
  const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(w), _mm256_set1_epi32(0x7fffffff));
  const __m256i key = _mm256_min_epu32(magnitude, _mm256_set1_epi32(static_cast<int>(kNan)));
  __m256i rank = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (int t = 1; t < m; ++t) {
    const auto at = [t](const uint32_t (&table)[m][8]) {
      return _mm256_load_si256(reinterpret_cast<const __m256i*>(table[t]));
    };
    const __m256i other = _mm256_permutevar8x32_epi32(key, at(rotations.lane));
    // One more where it wins a tie: keys are below 2^31 - 1.
    const __m256i met = _mm256_add_epi32(other, at(rotations.first));
    rank = _mm256_sub_epi32(rank, _mm256_cmpgt_epi32(met, key));
  }
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), rank))));
}

struct Word {
  static constexpr int widest = 8;
  template <int n, int m>
  SPARSECORE_INLINE static uint64_t largest(const Args& a, int64_t i) {
    uint64_t taken = 0;
    if constexpr (m <= widest)
      for (int s = 0; s < 64; s += 8) taken |= static_cast<uint64_t>(kept<n, m>(load(a, i + s))) << s;
    return taken;
  }
  SPARSECORE_INLINE static uint64_t selected(const uint8_t* mask) {
    const __m256i zero = _mm256_setzero_si256();
    uint64_t none = 0;
    for (int s = 0; s < 64; s += 32) {
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask + s));
      none |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, zero)))) << s;
    }
    return ~none;
  }
  template <int n, int m>
  SPARSECORE_INLINE static void pack(const Args& a, int64_t at, int64_t i, uint64_t taken) {
    for (int s = 0; s < 64; s += 8, taken >>= 8) {
      const int64_t to = at + s * n / m;
      if constexpr (m <= widest) {
        const __m256i from =
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPlaces.at[taken & 255])));
        store<8 * n / m>(a, to, _mm256_permutevar8x32_ps(load(a, i + s), from));
      } else if ((taken & 255) != 0) {  // a group of 16 has its one here
        store_f32(a.values, a.to, to, load_f32(a.w, a.from, i + s + __builtin_ctzll(taken)));
      }
    }
  }
};

}  // namespace
}  // namespace sparsecore::nm_compress

#include "ops/nm_compress/nm_compress_simd.h"

namespace sparsecore::nm_compress {
extern const Kernel kernel_avx2;
const Kernel kernel_avx2 = {"nm_compress_avx2", cpu::Isa::avx2, run};
}  // namespace sparsecore::nm_compress
