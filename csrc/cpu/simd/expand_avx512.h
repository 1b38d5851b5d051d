// SPDX-License-Identifier: Apache-2.0
// Expansion on AVX-512 with VBMI2: vpexpand{b,w} and vexpandps put 64, 32 or 16 columns in place, two port-5 uops
// and one to set the mask. 16-bit values are widened after the expansion, bfloat16 with even and odd columns apart
// (a shift, a mask).
//
// Expand<type> gives Element, lanes (columns a step), parts (registers a step), unit (of a sum), and
//   expand(p, word, s, out)   step s of a word of bits: the next values of p in the lanes of its columns, 0 in others;
//                             returns p past them. Reads a register from p on, whatever is set
//   load(p, out)              the same of a step whose bits are all set
// interleaved: lane l of part q is column l * parts + q of the step, else q * width + l.
#pragma once
#include "cpu/simd/vec_avx512.h"

namespace sparsecore {
namespace {

struct ExpandF32 {
  using Element = float;
  static constexpr int lanes = 16, parts = 1;
  static constexpr float unit = 1.0f;
  static constexpr bool interleaved = false;
  SPARSECORE_INLINE static const float* expand(const float* p, uint64_t word, int s, __m512* out) {
    const uint32_t bits = static_cast<uint16_t>(word >> 16 * s);
    out[0] = _mm512_maskz_expand_ps(static_cast<__mmask16>(bits), _mm512_loadu_ps(p));
    return p + __builtin_popcount(bits);
  }
  SPARSECORE_INLINE static void load(const float* p, __m512* out) { out[0] = _mm512_loadu_ps(p); }
};

// Lanes of a and b in turn, in two registers.
SPARSECORE_INLINE void zip(__m512& a, __m512& b) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512 first = _mm512_permutex2var_ps(a, low, b);
  b = _mm512_permutex2var_ps(a, _mm512_add_epi32(low, _mm512_set1_epi32(8)), b);
  a = first;
}

struct ExpandBf16 {
  using Element = uint16_t;
  static constexpr int lanes = 32, parts = 2;
  static constexpr float unit = 1.0f;
  static constexpr bool interleaved = true;
  SPARSECORE_INLINE static const uint16_t* expand(const uint16_t* p, uint64_t word, int s, __m512* out) {
    const uint32_t bits = static_cast<uint32_t>(word >> 32 * s);
    const __m512i v = _mm512_maskz_expand_epi16(bits, _mm512_loadu_si512(p));
    out[0] = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
    out[1] = _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
    return p + __builtin_popcount(bits);
  }
  SPARSECORE_INLINE static void load(const uint16_t* p, __m512* out) {
    const __m512i v = _mm512_loadu_si512(p);
    out[0] = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
    out[1] = _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  SPARSECORE_INLINE static void order(__m512* v) { zip(v[0], v[1]); }
};

struct ExpandF16 {
  using Element = uint16_t;
  static constexpr int lanes = 32, parts = 2;
  static constexpr float unit = 1.0f;
  static constexpr bool interleaved = false;
  SPARSECORE_INLINE static const uint16_t* expand(const uint16_t* p, uint64_t word, int s, __m512* out) {
    const uint32_t bits = static_cast<uint32_t>(word >> 32 * s);
    const __m512i v = _mm512_maskz_expand_epi16(bits, _mm512_loadu_si512(p));
    out[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(v));
    out[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(v, 1));
    return p + __builtin_popcount(bits);
  }
  SPARSECORE_INLINE static void load(const uint16_t* p, __m512* out) {
    out[0] = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    out[1] = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16)));
  }
};

// A value moved to the top byte converts to value * 2^24, exactly.
struct ExpandI8 {
  using Element = int8_t;
  static constexpr int lanes = 64, parts = 4;
  static constexpr float unit = 0x1p-24f;
  static constexpr bool interleaved = true;
  SPARSECORE_INLINE static const int8_t* expand(const int8_t* p, uint64_t word, int, __m512* out) {
    const __m512i v = _mm512_maskz_expand_epi8(word, _mm512_loadu_si512(p));
    const __m512i top = _mm512_set1_epi32(static_cast<int>(0xff000000u));
    out[0] = _mm512_cvtepi32_ps(_mm512_slli_epi32(v, 24));
    out[1] = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_slli_epi32(v, 16), top));
    out[2] = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_slli_epi32(v, 8), top));
    out[3] = _mm512_cvtepi32_ps(_mm512_and_si512(v, top));
    return p + __builtin_popcountll(word);
  }
  SPARSECORE_INLINE static void order(__m512* v) {
    zip(v[0], v[2]);
    zip(v[1], v[3]);
    zip(v[0], v[1]);
    zip(v[2], v[3]);
  }
};

}  // namespace
}  // namespace sparsecore
