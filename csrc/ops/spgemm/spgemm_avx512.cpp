// SPDX-License-Identifier: Apache-2.0
// spgemm on AVX-512 with VBMI2: columns by vpcompressb of 0..63, words with columns by vpcompressd, dense
// sums gathered; thick words spread a row of B by expanding loads, 16 (8 of fp64) columns an addition.
// gcc 12 takes the undefined lanes of its own intrinsics for a slip.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "ops/spgemm/spgemm_simd.h"

namespace sparsecore::spgemm {
namespace {

alignas(64) constexpr struct Iota {
  uint8_t at[64];
  constexpr Iota() : at() {
    for (int i = 0; i < 64; ++i) at[i] = static_cast<uint8_t>(i);
  }
} kIota;

inline __mmask16 first16(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1); }
inline __mmask8 first8(int64_t count) { return static_cast<__mmask8>(count >= 8 ? 0xff : (1 << count) - 1); }

struct Avx512Lanes : PlainLanes {
  // Expanding loads against one sum at a time, ns a product at 6, 13 and 32 bits a word: fp32 2.2 and 2.0,
  // 1.1 and 1.9, 0.4 and 1.3; fp64 3.4 and 2.1, 2.2 and 2.6, 0.7 and 1.4.
  static constexpr int64_t thick_bits(Dtype d) { return d == Dtype::f32 ? 8 : d == Dtype::f64 ? 12 : kNeverThick; }
  template <class T>
  static constexpr bool kThickens = kReal<T>;

  static void store(int32_t* out, int64_t count, __m128i at, int64_t base) {
    const __m512i columns = _mm512_add_epi32(_mm512_cvtepu8_epi32(at), _mm512_set1_epi32(static_cast<int>(base)));
    _mm512_mask_storeu_epi32(out, first16(count), columns);
  }
  static void store(int64_t* out, int64_t count, __m128i at, int64_t base) {
    const __m512i start = _mm512_set1_epi64(base);
    const __mmask16 live = first16(count);
    _mm512_mask_storeu_epi64(out, static_cast<__mmask8>(live), _mm512_add_epi64(_mm512_cvtepu8_epi64(at), start));
    _mm512_mask_storeu_epi64(out + 8, static_cast<__mmask8>(live >> 8),
                             _mm512_add_epi64(_mm512_cvtepu8_epi64(_mm_unpackhi_epi64(at, at)), start));
  }
  template <class Index>
  static void columns(uint64_t bits, int64_t first, Index* out) {
    const __m512i at = _mm512_maskz_compress_epi8(bits, _mm512_load_si512(kIota.at));
    const int64_t count = bit_count(bits);
    store(out, count, _mm512_castsi512_si128(at), first);
    if (count <= 16) return;
    alignas(64) uint8_t bytes[64];
    _mm512_store_si512(bytes, at);
    for (int64_t j = 16; j < count; j += 16)
      store(out + j, count - j, _mm_load_si128(reinterpret_cast<const __m128i*>(bytes + j)), first);
  }

  static int64_t touched(const uint64_t* bits, int64_t count, int32_t* list) {
    __m256i at = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    int64_t found = 0;
    for (int64_t w = 0; w < count; w += 8, at = _mm256_add_epi32(at, _mm256_set1_epi32(8))) {
      const __m512i words = _mm512_maskz_loadu_epi64(first8(count - w), bits + w);
      const __mmask8 live = _mm512_test_epi64_mask(words, words);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(list + found), _mm256_maskz_compress_epi32(live, at));
      found += bit_count(live);
    }
    return found;
  }

  // 16 columns as int32, zeros past `live`.
  static __m512i load16(const int32_t* col, __mmask16 live) { return _mm512_maskz_loadu_epi32(live, col); }
  static __m512i load16(const int64_t* col, __mmask16 live) {
    const __m256i low = _mm512_cvtepi64_epi32(_mm512_maskz_loadu_epi64(static_cast<__mmask8>(live), col));
    const __m256i high = _mm512_cvtepi64_epi32(_mm512_maskz_loadu_epi64(static_cast<__mmask8>(live >> 8), col + 8));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  using PlainLanes::stage;
  template <class Index>
  static void stage(const Index* col, const None*, None, int64_t count, int32_t* columns, None*, None*) {
    for (int64_t j = 0; j < count; j += 16) _mm512_storeu_si512(columns + j, load16(col + j, first16(count - j)));
  }
  template <class Index>
  static void stage(const Index* col, const float* values, float a, int64_t count, int32_t* columns, float* factors,
                    float* elements) {
    for (int64_t j = 0; j < count; j += 16) {
      const __mmask16 live = first16(count - j);
      _mm512_storeu_si512(columns + j, load16(col + j, live));
      _mm512_storeu_ps(factors + j, _mm512_set1_ps(a));
      _mm512_storeu_ps(elements + j, _mm512_maskz_loadu_ps(live, values + j));
    }
  }
  template <class Index>
  static void stage(const Index* col, const double* values, double a, int64_t count, int32_t* columns, double* factors,
                    double* elements) {
    for (int64_t j = 0; j < count; j += 16) {
      const __mmask16 live = first16(count - j);
      _mm512_storeu_si512(columns + j, load16(col + j, live));
      for (int h = 0; h < 2; ++h) {
        _mm512_storeu_pd(factors + j + 8 * h, _mm512_set1_pd(a));
        _mm512_storeu_pd(elements + j + 8 * h,
                         _mm512_maskz_loadu_pd(static_cast<__mmask8>(live >> 8 * h), values + j + 8 * h));
      }
    }
  }

  using PlainLanes::take;
  // sums[c] += a * the next value, for each bit c, rising. Returns past the values taken. The word is walked to its
  // end, for whether bits are left is a branch mispredicted: 0.93 to 0.96 of the time so in FEM matrices.
  static const float* add(float* sums, uint64_t bits, const float* values, float a) {
    const __m512 factor = _mm512_set1_ps(a);
#pragma GCC unroll 4
    for (int h = 0; h < 4; ++h, bits >>= 16, sums += 16) {
      const __mmask16 m = static_cast<__mmask16>(bits);
      const __m512 v = _mm512_maskz_expandloadu_ps(m, values);
      _mm512_storeu_ps(sums, _mm512_mask3_fmadd_ps(v, factor, _mm512_loadu_ps(sums), m));
      values += bit_count(m);
    }
    return values;
  }
  static const double* add(double* sums, uint64_t bits, const double* values, double a) {
    const __m512d factor = _mm512_set1_pd(a);
#pragma GCC unroll 8
    for (int h = 0; h < 8; ++h, bits >>= 8, sums += 8) {
      const __mmask8 m = static_cast<__mmask8>(bits);
      const __m512d v = _mm512_maskz_expandloadu_pd(m, values);
      _mm512_storeu_pd(sums, _mm512_mask3_fmadd_pd(v, factor, _mm512_loadu_pd(sums), m));
      values += bit_count(m);
    }
    return values;
  }

  static float* take(float* sums, uint64_t bits, float* out) {
    for (; bits != 0; bits >>= 16, sums += 16) {
      const __mmask16 m = static_cast<__mmask16>(bits);
      const int64_t count = bit_count(m);
      _mm512_mask_storeu_ps(out, first16(count), _mm512_maskz_compress_ps(m, _mm512_loadu_ps(sums)));
      _mm512_storeu_ps(sums, _mm512_setzero_ps());
      out += count;
    }
    return out;
  }
  static double* take(double* sums, uint64_t bits, double* out) {
    for (; bits != 0; bits >>= 8, sums += 8) {
      const __mmask8 m = static_cast<__mmask8>(bits);
      const int64_t count = bit_count(m);
      _mm512_mask_storeu_pd(out, first8(count), _mm512_maskz_compress_pd(m, _mm512_loadu_pd(sums)));
      _mm512_storeu_pd(sums, _mm512_setzero_pd());
      out += count;
    }
    return out;
  }

  // 8 columns less `first`, zeros past `live`.
  static __m256i places(const int32_t* col, __mmask8 live, int64_t first) {
    return _mm256_sub_epi32(_mm256_maskz_loadu_epi32(live, col), _mm256_set1_epi32(static_cast<int>(first)));
  }
  static __m256i places(const int64_t* col, __mmask8 live, int64_t first) {
    return _mm512_cvtepi64_epi32(_mm512_sub_epi64(_mm512_maskz_loadu_epi64(live, col), _mm512_set1_epi64(first)));
  }
  template <class Index>
  static void take(float* sums, int64_t first, const Index* col, int64_t count, float* out) {
    for (int64_t j = 0; j < count; j += 16) {
      const __mmask16 live = first16(count - j);
      const __m512i at = _mm512_inserti64x4(
          _mm512_castsi256_si512(places(col + j, static_cast<__mmask8>(live), first)),
          live >> 8 ? places(col + j + 8, static_cast<__mmask8>(live >> 8), first) : _mm256_setzero_si256(), 1);
      _mm512_mask_storeu_ps(out + j, live, _mm512_mask_i32gather_ps(_mm512_setzero_ps(), live, at, sums, 4));
      _mm512_mask_i32scatter_ps(sums, live, at, _mm512_setzero_ps(), 4);
    }
  }
  template <class Index>
  static void take(double* sums, int64_t first, const Index* col, int64_t count, double* out) {
    for (int64_t j = 0; j < count; j += 8) {
      const __mmask8 live = first8(count - j);
      const __m256i at = places(col + j, live, first);
      _mm512_mask_storeu_pd(out + j, live, _mm512_mask_i32gather_pd(_mm512_setzero_pd(), live, at, sums, 8));
      _mm512_mask_i32scatter_pd(sums, live, at, _mm512_setzero_pd(), 8);
    }
  }
};

}  // namespace

extern const Kernel kernel_avx512;
const Kernel kernel_avx512 = kernel_of<Avx512Lanes>("spgemm_avx512", cpu::Isa::avx512);

}  // namespace sparsecore::spgemm
