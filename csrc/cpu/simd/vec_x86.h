// SPDX-License-Identifier: Apache-2.0
// Verbs of 4 and 8 lanes for x86, compiled under the flags of the vec header that includes it. Everything here has
// internal linkage.
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
  static float sum(reg a) {
    const reg s = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  // t[i][j] and t[j][i] change places.
  static void transpose(reg* t) {
    const reg a = _mm_unpacklo_ps(t[0], t[1]), b = _mm_unpackhi_ps(t[0], t[1]);
    const reg c = _mm_unpacklo_ps(t[2], t[3]), d = _mm_unpackhi_ps(t[2], t[3]);
    t[0] = _mm_movelh_ps(a, c);
    t[1] = _mm_movehl_ps(c, a);
    t[2] = _mm_movelh_ps(b, d);
    t[3] = _mm_movehl_ps(d, b);
  }
  // base[index[0..4)], by loads of one lane: 0.26 ns a lane on Ice Lake, where gathers of 8 and 16 lanes
  // take 1.08 and 0.56 since microcode slows them down. Two indices come in one load.
  static reg gather(const float* base, const int32_t* index) {
    uint64_t i[2];
    std::memcpy(i, index, sizeof(i));
    reg r = _mm_load_ss(base + static_cast<uint32_t>(i[0]));
    r = _mm_insert_ps(r, _mm_load_ss(base + (i[0] >> 32)), 0x10);
    r = _mm_insert_ps(r, _mm_load_ss(base + static_cast<uint32_t>(i[1])), 0x20);
    return _mm_insert_ps(r, _mm_load_ss(base + (i[1] >> 32)), 0x30);
  }
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
  // p[0..4) in every four lanes, and lane i of each four everywhere in it.
  static reg load4(const float* p) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p)); }
  SPARSECORE_INLINE static reg pick(reg a, int i) {
    return i == 0   ? _mm256_permute_ps(a, 0x00)
           : i == 1 ? _mm256_permute_ps(a, 0x55)
           : i == 2 ? _mm256_permute_ps(a, 0xaa)
                    : _mm256_permute_ps(a, 0xff);
  }
  static void store(float* p, reg a) { _mm256_storeu_ps(p, a); }
  static reg add(reg a, reg b) { return _mm256_add_ps(a, b); }
  static reg fma(reg a, reg b, reg c) { return _mm256_fmadd_ps(a, b, c); }
  // Lane r: the sum of the register stored at p + r * stride. 14 shuffles for 8 sums.
  static reg sums(const float* p, int64_t stride) {
    reg quad[2];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const float* at = p + 4 * j * stride;
      const reg a = load(at), b = load(at + stride), c = load(at + 2 * stride), d = load(at + 3 * stride);
      const reg ab = add(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
      const reg cd = add(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
      const __m256d t = _mm256_castps_pd(ab), u = _mm256_castps_pd(cd);
      quad[j] = add(_mm256_castpd_ps(_mm256_unpacklo_pd(t, u)), _mm256_castpd_ps(_mm256_unpackhi_pd(t, u)));
    }
    return add(_mm256_permute2f128_ps(quad[0], quad[1], 0x20), _mm256_permute2f128_ps(quad[0], quad[1], 0x31));
  }
};

// Two rows of four floats in a register.
struct Fours : F32x8 {
  static constexpr int rows = 2;
  using F32x8::load;
  static reg load(const uint16_t* p, Dtype d) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return d == Dtype::bf16 ? _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)) : _mm256_cvtph_ps(h);
  }
  // Values 2 i and 2 i + 1, four lanes each.
  SPARSECORE_INLINE static reg spread(reg a, int i) {
    const __m256i first = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    return _mm256_permutevar8x32_ps(a, _mm256_add_epi32(first, _mm256_set1_epi32(2 * i)));
  }
  // Rows cols[0] and cols[1], which come in one load; doubled together, an address scales them by 8.
  SPARSECORE_INLINE static reg gather(const float* base, const int32_t* cols) {
    uint64_t two;
    std::memcpy(&two, cols, sizeof(two));
    two += two;
    const __m128 low = _mm_loadu_ps(base + 2 * static_cast<uint64_t>(static_cast<uint32_t>(two)));
    return _mm256_insertf128_ps(_mm256_castps128_ps256(low), _mm_loadu_ps(base + 2 * (two >> 32)), 1);
  }
  static F32x4::reg fold(reg a) { return _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1)); }
};

}  // namespace
}  // namespace sparsecore
