// SPDX-License-Identifier: Apache-2.0
// AVX2 verbs. Included by *_avx2.cpp alone; everything here has internal linkage.
#pragma once
#include "cpu/simd/vec_x86.h"

namespace sparsecore {
namespace {

using Wide = F32x8;
// Registers that hold a panel of T floats.
template <int T>
struct PanelVec {
  using type = F32x8;
};
template <>
struct PanelVec<4> {
  using type = F32x4;
};

// Sums that a dense tile keeps in registers: rows of W, registers of a panel.
constexpr int kTileRows = 6, kTileRegisters = 2;

constexpr int64_t kWiden = 8;  // elements the widening loads take

inline void widen(const uint16_t* in, Dtype d, float* out) { _mm256_storeu_ps(out, Fours::load(in, d)); }
inline void widen(const int8_t* in, float* out) {
  const __m128i q = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(in));
  _mm256_storeu_ps(out, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)));
}

// How many of the leading columns of cols[0..count), which rise, lie below `limit`.
inline int64_t count_below(const int32_t* cols, int64_t count, int32_t limit) {
  const __m256i bound = _mm256_set1_epi32(limit);
  int64_t p = 0;
  for (; p + 8 <= count; p += 8) {
    const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(cols + p));
    const unsigned below = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(bound, c))));
    if (below != 0xff) return p + __builtin_ctz(~below);
  }
  while (p < count && cols[p] < limit) ++p;
  return p;
}

// Whether cols[0..count) rise strictly. The last step overlaps the one before it.
inline bool rises(const int32_t* cols, int64_t count) {
  if (count <= 8) {
    bool rise = true;
    for (int64_t p = 1; p < count; ++p) rise &= cols[p] > cols[p - 1];
    return rise;
  }
  __m256i rise = _mm256_set1_epi32(-1);
  for (int64_t p = 1; p < count; p += 8) {
    const int32_t* at = cols + (p + 8 <= count ? p : count - 8);
    rise = _mm256_and_si256(rise, _mm256_cmpgt_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)),
                                                     _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at - 1))));
  }
  return _mm256_movemask_epi8(rise) == -1;
}

}  // namespace
}  // namespace sparsecore
