// SPDX-License-Identifier: Apache-2.0
// AVX-512 verbs (Ice Lake level). Included by *_avx512.cpp alone; everything here has internal linkage.
#pragma once
#include "cpu/simd/vec_x86.h"

namespace sparsecore {
namespace {

struct F32x16 {
  using reg = __m512;
  static constexpr int64_t width = 16;
  static reg zero() { return _mm512_setzero_ps(); }
  static reg set1(float a) { return _mm512_set1_ps(a); }
  static reg load(const float* p) { return _mm512_loadu_ps(p); }
  // A load that stays in its register: gcc would repeat it as an operand of every use.
  static reg pin(reg a) {
    asm("" : "+v"(a));
    return a;
  }
  // p[0..4) in every four lanes, and lane i of each four everywhere in it.
  static reg load4(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
  SPARSECORE_INLINE static reg pick(reg a, int i) {
    return i == 0   ? _mm512_permute_ps(a, 0x00)
           : i == 1 ? _mm512_permute_ps(a, 0x55)
           : i == 2 ? _mm512_permute_ps(a, 0xaa)
                    : _mm512_permute_ps(a, 0xff);
  }
  static void store(float* p, reg a) { _mm512_storeu_ps(p, a); }
  static reg add(reg a, reg b) { return _mm512_add_ps(a, b); }
  static reg fma(reg a, reg b, reg c) { return _mm512_fmadd_ps(a, b, c); }
  // Lane r: the sum of the register stored at p + r * stride. 30 shuffles for 16 sums.
  static reg sums(const float* p, int64_t stride) {
    reg quad[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const float* at = p + 4 * j * stride;
      const reg a = load(at), b = load(at + stride), c = load(at + 2 * stride), d = load(at + 3 * stride);
      const reg ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
      const reg cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
      const __m512d t = _mm512_castps_pd(ab), u = _mm512_castps_pd(cd);
      quad[j] = add(_mm512_castpd_ps(_mm512_unpacklo_pd(t, u)), _mm512_castpd_ps(_mm512_unpackhi_pd(t, u)));
    }
    const reg low = add(_mm512_shuffle_f32x4(quad[0], quad[1], 0x88), _mm512_shuffle_f32x4(quad[0], quad[1], 0xdd));
    const reg high = add(_mm512_shuffle_f32x4(quad[2], quad[3], 0x88), _mm512_shuffle_f32x4(quad[2], quad[3], 0xdd));
    return add(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
  }
};

using Wide = F32x16;
// Registers that hold a panel of T floats.
template <int T>
struct PanelVec {
  using type = F32x16;
};
template <>
struct PanelVec<4> {
  using type = F32x4;
};
template <>
struct PanelVec<8> {
  using type = F32x8;
};

// Sums that a dense tile keeps in registers: rows of W, registers of a panel.
constexpr int kTileRows = 6, kTileRegisters = 4;

constexpr int64_t kWiden = 16;  // elements the widening loads take

inline void widen(const uint16_t* in, Dtype d, float* out) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in));
  const __m512 f =
      d == Dtype::bf16 ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)) : _mm512_cvtph_ps(h);
  _mm512_storeu_ps(out, f);
}
inline void widen(const int8_t* in, float* out) {
  const __m128i q = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in));
  _mm512_storeu_ps(out, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)));
}

// How many of the leading columns of cols[0..count), which rise, lie below `limit`.
inline int64_t count_below(const int32_t* cols, int64_t count, int32_t limit) {
  const __m512i bound = _mm512_set1_epi32(limit);
  for (int64_t p = 0; p < count; p += 16) {
    const unsigned live = count - p >= 16 ? 0xffffu : (1u << (count - p)) - 1;
    const __m512i c = _mm512_maskz_loadu_epi32(static_cast<__mmask16>(live), cols + p);
    const unsigned below = _mm512_mask_cmplt_epi32_mask(static_cast<__mmask16>(live), c, bound);
    if (below != 0xffff) return p + __builtin_ctz(~below);
  }
  return count;
}

// Whether cols[0..count) rise strictly.
inline bool rises(const int32_t* cols, int64_t count) {
  __mmask16 falls = 0;
  for (int64_t p = 1; p < count; p += 16) {
    const __mmask16 live = static_cast<__mmask16>(count - p >= 16 ? 0xffffu : (1u << (count - p)) - 1);
    const __m512i here = _mm512_maskz_loadu_epi32(live, cols + p),
                  before = _mm512_maskz_loadu_epi32(live, cols + p - 1);
    falls = _kor_mask16(falls, _mm512_mask_cmple_epi32_mask(live, here, before));
  }
  return falls == 0;
}

}  // namespace
}  // namespace sparsecore
