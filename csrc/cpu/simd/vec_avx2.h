// SPDX-License-Identifier: Apache-2.0
// AVX2 verbs. Included by *_avx2.cpp alone; everything here has internal linkage.
#pragma once
#include <immintrin.h>

#include "core/dtype.h"

namespace sparsecore {
namespace {

struct F32x4 {
  using reg = __m128;
  static constexpr int64_t width = 4;
  static reg zero() { return _mm_setzero_ps(); }
  static reg set1(float a) { return _mm_set1_ps(a); }
  static reg load(const float* p) { return _mm_loadu_ps(p); }
  static void store(float* p, reg a) { _mm_storeu_ps(p, a); }
  static reg add(reg a, reg b) { return _mm_add_ps(a, b); }
  static reg fma(reg a, reg b, reg c) { return _mm_fmadd_ps(a, b, c); }
};

struct F32x8 {
  using reg = __m256;
  static constexpr int64_t width = 8;
  static reg zero() { return _mm256_setzero_ps(); }
  static reg set1(float a) { return _mm256_set1_ps(a); }
  static reg load(const float* p) { return _mm256_loadu_ps(p); }
  // A load that stays in its register: gcc would repeat it as an operand of every use.
  static reg pin(reg a) {
    asm("" : "+x"(a));
    return a;
  }
  static void store(float* p, reg a) { _mm256_storeu_ps(p, a); }
  static reg add(reg a, reg b) { return _mm256_add_ps(a, b); }
  static reg fma(reg a, reg b, reg c) { return _mm256_fmadd_ps(a, b, c); }
  static float sum(reg a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  // base[index[0..8)]
  static reg gather(const float* base, const int32_t* index) {
    return _mm256_i32gather_ps(base, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)), 4);
  }
};

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

inline void widen(const uint16_t* in, Dtype d, float* out) {
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in));
  const __m256 f =
      d == Dtype::bf16 ? _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)) : _mm256_cvtph_ps(h);
  _mm256_storeu_ps(out, f);
}
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

}  // namespace
}  // namespace sparsecore
