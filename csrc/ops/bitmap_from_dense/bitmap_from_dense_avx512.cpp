// SPDX-License-Identifier: Apache-2.0
// bitmap_from_dense on AVX-512: vptestm gives bits, vpcompress packs 16 numbers (32 of 16 bits that stay
// as they are) in a register. Compressing straight to memory is microcoded on some CPUs.
#include <immintrin.h>

#include "ops/bitmap_from_dense/bitmap_from_dense.h"

namespace sparsecore::bitmap_from_dense {
namespace {

struct F32 {
  uint32_t number;
};
struct B16 {
  uint16_t number;
};
struct H16 {
  uint16_t number;
};

SPARSECORE_INLINE __m512 load(const F32* p) { return _mm512_loadu_ps(p); }
SPARSECORE_INLINE __m256i load_16(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
SPARSECORE_INLINE __m512 load(const B16* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_16(p)), 16));
}
SPARSECORE_INLINE __m512 load(const H16* p) { return _mm512_cvtph_ps(load_16(p)); }

inline uint64_t nonzeros(const F32* p) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  uint64_t bits = 0;
  for (int s = 0; s < 4; ++s)
    bits |= static_cast<uint64_t>(_mm512_test_epi32_mask(_mm512_loadu_si512(p + 16 * s), magnitude)) << 16 * s;
  return bits;
}
inline uint64_t nonzeros(const B16* p) {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  return static_cast<uint64_t>(_mm512_test_epi16_mask(_mm512_loadu_si512(p + 32), magnitude)) << 32 |
         _mm512_test_epi16_mask(_mm512_loadu_si512(p), magnitude);
}

template <class T>
inline uint32_t largest(const T* p, uint32_t so_far) {
  __m512i most = _mm512_set1_epi32(static_cast<int>(so_far));
  for (int s = 0; s < 64; s += 16)
    most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_castps_si512(load(p + s)), _mm512_set1_epi32(0x7fffffff)));
  return _mm512_reduce_max_epu32(most);
}

SPARSECORE_INLINE void store(F32* out, __m512 v, float) { _mm512_storeu_ps(out, v); }
SPARSECORE_INLINE void store(B16* out, __m512 v, float) {
  const __m512i bits = _mm512_castps_si512(v),
                odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i near = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(near, nan, bits, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}
SPARSECORE_INLINE void store(H16* out, __m512 v, float) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                      _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// NaN converts to 0x80000000, whose low byte is 0.
SPARSECORE_INLINE void store(int8_t* out, __m512 v, float scale) {
  const __m512i q = _mm512_cvtps_epi32(_mm512_div_ps(v, _mm512_set1_ps(scale)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(q));
}

template <class T, class To>
inline void pack_word(const T* p, uint64_t bits, float scale, To* out) {
  for (int s = 0; s < 4; ++s) {
    const uint32_t here = static_cast<uint16_t>(bits >> 16 * s);
    store(out, _mm512_maskz_compress_ps(static_cast<__mmask16>(here), load(p + 16 * s)), scale);
    out += __builtin_popcount(here);
  }
}
template <class T>
  requires(sizeof(T) == 2)
inline void pack_word(const T* p, uint64_t bits, float, T* out) {
  const uint32_t low = static_cast<uint32_t>(bits), high = static_cast<uint32_t>(bits >> 32);
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi16(low, _mm512_loadu_si512(p)));
  _mm512_storeu_si512(out + __builtin_popcount(low), _mm512_maskz_compress_epi16(high, _mm512_loadu_si512(p + 32)));
}

}  // namespace
}  // namespace sparsecore::bitmap_from_dense

#include "ops/bitmap_from_dense/bitmap_from_dense_simd.h"

namespace sparsecore::bitmap_from_dense {
extern const Kernel kernel_avx512;
const Kernel kernel_avx512 = {"bitmap_from_dense_avx512", cpu::Isa::avx512, bits, pack};
}  // namespace sparsecore::bitmap_from_dense
