// SPDX-License-Identifier: Apache-2.0
// spmm_nm on AVX-512 with VBMI. Positions permute x: lane l of 16 products takes column 4 (l / 2) + p_l of 32 in two
// registers (2:4), so one FMA does the work of two over expanded values and no zero meets x. For 64 columns of a row,
// ports 0 and 5, bf16, one row of x:
//   2:4   vpmultishiftqb gives both steps' p_l a byte, vpternlogd their groups, 1 shift; each step vpermw (widens 16
//         values), vpermi2ps, vfmadd: 9, where a bitmap takes 14
//   1:4   vpsrlvd, vpternlogd, vpermw, 2 vpermi2ps, a blend, vfmadd: 7        2:8   the same
//   4:8 and 6:8 come as masks, which vpexpandw takes as they are: 14
//
// 4096 x 4096, x fp32, W cold, two 2.8 GHz Ice Lake cores with other work beside, us; fp32, bf16, int8 values:
//   2:4  m = 1   1650  980 680   a bitmap of the same W 1680  930  700, torch's dense fp32 2700: bytes set the pace
//        m = 4   2130 1410 1160                         2150 1500 1360                     6100
//   1:4  m = 1    910  600 430                          1150  760  670
//   2:8  m = 1   1060  740 540                          1150  720  660
//   410 of the row  m = 1  860 780 730, m = 16  1350 1180 1050; torch's CSR fp32 1080 and 2230
#include "cpu/simd/vec_avx512.h"
#include "ops/spmm_nm/spmm_nm.h"

namespace sparsecore::spmm_nm {
namespace {

constexpr int64_t kWordRows = 16;
constexpr int rows_together(int) { return 4; }

struct Table {
  alignas(64) uint8_t at[64];
  template <class Make>
  constexpr explicit Table(Make make) : at() {
    for (int i = 0; i < 64; ++i) at[i] = static_cast<uint8_t>(make(i));
  }
};
SPARSECORE_INLINE __m512i load(const Table& t) { return _mm512_load_si512(t.at); }

// Words l and 32 of a pair: lane l's value lands in its upper half.
constexpr Table kUpper([](int i) { return i % 4 == 2 ? i / 4 : 0; });

struct F32 {
  using Element = float;
  static constexpr bool in_pairs = false;  // neighbours share a lane until they are widened
  SPARSECORE_INLINE static __m512 widen(const float* p) { return _mm512_loadu_ps(p); }
};
struct Bf16 {
  using Element = uint16_t;
  static constexpr bool in_pairs = true;
  SPARSECORE_INLINE static __m512 widen(const uint16_t* p) {
    const __m512i v = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, load(kUpper), v));
  }
};
struct F16 {
  using Element = uint16_t;
  static constexpr bool in_pairs = false;
  SPARSECORE_INLINE static __m512 widen(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
};
struct I8 {
  using Element = int8_t;
  static constexpr bool in_pairs = true;
  SPARSECORE_INLINE static __m512 widen(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
};

// x in a word of 64 columns is 4 registers. A step of 16 values takes 2 of them (1:2, 2:4) or all 4 (1:4, 2:8), of
// which lanes 0 to 7 the first two.
template <int n, int m, class V>
struct Permute {
  using Element = typename V::Element;
  static constexpr int steps = m / n == 2 ? 2 : 1, registers = 1;
  static constexpr bool interleaved = false, exact = true;
  static constexpr float unit = 1.0f;
  using Codes = __m512i;
  struct X {
    __m512 at[4 / steps];
  };
  struct Step {
    __m512 v[1];
    __m512i index;
  };

  // Bit at which the position of lane i / 4, byte i % 4 of it, lies: a byte a step.
  static constexpr Table kShift{[](int i) { return i % 4 * (64 / steps) % 64 + i / 4 * nm_field(m); }};
  // The first column of the lane's group, of the 32 that its registers hold; 1:2 has the second step's in byte 2.
  static constexpr Table kFirst{
      [](int i) { return (n == 1 && m == 2) ? (i % 2 == 0 ? i / 4 * 2 : 0) : i / 4 / n * m % 32; }};

  SPARSECORE_INLINE static __m512i open(const uint8_t* codes) {
    __m512i at;
    int field;
    if constexpr (nm_word_bytes(n, m) == 8) {
      at = _mm512_multishift_epi64_epi8(
          load(kShift), _mm512_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes))));
      field = (m - 1) * 0x01010101;
    } else {
      const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      at = _mm512_srlv_epi32(_mm512_broadcastd_epi32(_mm_loadu_si32(codes)),
                             m == 2 ? lanes : _mm512_slli_epi32(lanes, 1));
      field = m == 2 ? 0x00010001 : 3;
    }
    return _mm512_ternarylogic_epi32(at, _mm512_set1_epi32(field), load(kFirst), 0xea);  // at & field | first
  }
  SPARSECORE_INLINE static X load_x(const float* x, int s) {
    X out;
#pragma GCC unroll 4
    for (int j = 0; j < 4 / steps; ++j) out.at[j] = _mm512_loadu_ps(x + s * 32 + 16 * j);
    return out;
  }
  SPARSECORE_INLINE static Step step(__m512i code, const Element* p, int s) {
    return {{V::widen(p + 16 * s)}, s == 0 ? code : _mm512_srli_epi32(code, m == 2 ? 16 : 8)};
  }
  SPARSECORE_INLINE static __m512 mul(const X& x, const Step& step, int) {
    const __m512 low = _mm512_permutex2var_ps(x.at[0], step.index, x.at[1]);
    if constexpr (steps == 2) return low;
    else return _mm512_mask_blend_ps(0xff00, low, _mm512_permutex2var_ps(x.at[2], step.index, x.at[3]));
  }
};

// A mask of columns: values are spread over them, with zeros between.
template <int n, class V>
struct Expand {
  using Element = typename V::Element;
  static constexpr int registers = 4 / sizeof(Element), steps = 4 / registers;
  static constexpr bool interleaved = V::in_pairs, exact = false;
  static constexpr float unit = registers == 4 ? 0x1p-24f : 1.0f;
  using Codes = uint64_t;
  struct X {
    const float* at;
  };
  struct Step {
    __m512 v[registers];
  };
  SPARSECORE_INLINE static uint64_t open(const uint8_t* codes) { return nm_word<n, 8>(codes); }
  SPARSECORE_INLINE static X load_x(const float* x, int s) { return {x + s * 16 * registers}; }
  SPARSECORE_INLINE static Step step(uint64_t word, const Element* p, int s) {
    constexpr int kStep = 16 * registers;
    Step out;
    p += s * kStep * n / 8;
    if constexpr (registers == 1) {
      const __m512 v = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1 << 2 * n) - 1), p);
      out.v[0] = _mm512_maskz_expand_ps(static_cast<__mmask16>(word >> 16 * s), v);
    } else if constexpr (registers == 2) {
      const __m512i v =
          _mm512_maskz_expand_epi16(static_cast<__mmask32>(word >> 32 * s),
                                    _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << 4 * n) - 1), p));
      if constexpr (V::in_pairs) {
        out.v[0] = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
        out.v[1] = _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
      } else {
        out.v[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(v));
        out.v[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(v, 1));
      }
    } else {  // a value moved to the top byte converts to value * 2^24, exactly
      const __m512i v = _mm512_maskz_expand_epi8(word, _mm512_maskz_loadu_epi8((uint64_t{1} << 8 * n) - 1, p));
      const __m512i top = _mm512_set1_epi32(static_cast<int>(0xff000000u));
      out.v[0] = _mm512_cvtepi32_ps(_mm512_slli_epi32(v, 24));
      out.v[1] = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_slli_epi32(v, 16), top));
      out.v[2] = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_slli_epi32(v, 8), top));
      out.v[3] = _mm512_cvtepi32_ps(_mm512_and_si512(v, top));
    }
    return out;
  }
  SPARSECORE_INLINE static __m512 mul(const X& x, const Step&, int q) { return _mm512_loadu_ps(x.at + 16 * q); }
};

// Eight numbers by loads that leave the other lanes: a load and an uop of any port each, where an insertion is port 5's.
struct Lanes : F32x8 {
  SPARSECORE_INLINE static void put(__m256& to, __mmask8 lane, const float* from) {
    asm("vbroadcastss %1, %0%{%2%}" : "+v"(to) : "m"(*from), "Yk"(lane));
  }
  SPARSECORE_INLINE static __m256 gather(const float* x, const int16_t* cols) {
    uint64_t low, high;
    std::memcpy(&low, cols, 8);
    std::memcpy(&high, cols + 4, 8);
    __m256 out = _mm256_castps128_ps256(_mm_load_ss(x + (low & 0xffff)));
    put(out, 2, x + (low >> 16 & 0xffff));
    put(out, 4, x + (low >> 32 & 0xffff));
    put(out, 8, x + (low >> 48));
    put(out, 16, x + (high & 0xffff));
    put(out, 32, x + (high >> 16 & 0xffff));
    put(out, 64, x + (high >> 32 & 0xffff));
    put(out, 128, x + (high >> 48));
    return out;
  }
};

template <int n, int m, class V>
struct WordOf {
  using type = Permute<n, m, V>;
};
template <int n, class V>
  requires(n >= 4)
struct WordOf<n, 8, V> {
  using type = Expand<n, V>;
};
template <int n, int m, class V>
using Word = typename WordOf<n, m, V>::type;

}  // namespace
}  // namespace sparsecore::spmm_nm

#include "ops/spmm_nm/spmm_nm_simd.h"

namespace sparsecore::spmm_nm {
extern const Kernel kernel_avx512;
const Kernel kernel_avx512 = {"spmm_nm_avx512", cpu::Isa::avx512, plan, pack, run};
}  // namespace sparsecore::spmm_nm
