// SPDX-License-Identifier: Apache-2.0
// spmm_bitmap on AVX-512 with VBMI2: vpexpand{b,w} and vexpandps put 64, 32 or 16 columns in place, two
// port-5 uops and one to set the mask. 16-bit values are widened after the expansion, even and odd
// columns apart (a shift, a mask), which x is packed to match.
#include "cpu/simd/vec_avx512.h"
#include "ops/spmm_bitmap/spmm_bitmap.h"

namespace sparsecore::spmm_bitmap {
namespace {

constexpr int64_t kExpandRows = 16;
constexpr double kListDensity4 = 0.13;
constexpr int rows_together(int m) { return m <= 4 ? 4 : 2; }

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

alignas(64) constexpr struct Iota {
  uint8_t at[64];
  constexpr Iota() : at() {
    for (int i = 0; i < 64; ++i) at[i] = static_cast<uint8_t>(i);
  }
} kIota;

inline int32_t* decode_word(uint64_t bits, int32_t base, int32_t* out) {
  alignas(64) uint8_t at[64];
  _mm512_store_si512(at, _mm512_maskz_compress_epi8(bits, _mm512_load_si512(kIota.at)));
  const __m512i first = _mm512_set1_epi32(base);
  const int count = __builtin_popcountll(bits);
  for (int j = 0; j < count; j += 16) {
    const __m128i quarter = _mm_load_si128(reinterpret_cast<const __m128i*>(at + j));
    _mm512_storeu_si512(out + j, _mm512_add_epi32(_mm512_cvtepu8_epi32(quarter), first));
  }
  return out + count;
}

}  // namespace
}  // namespace sparsecore::spmm_bitmap

#include "ops/spmm_bitmap/spmm_bitmap_simd.h"

namespace sparsecore::spmm_bitmap {
extern const Kernel kernel_avx512;
const Kernel kernel_avx512 = {"spmm_bitmap_avx512", cpu::Isa::avx512, plan, pack, run};
}  // namespace sparsecore::spmm_bitmap
