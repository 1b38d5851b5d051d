// SPDX-License-Identifier: Apache-2.0
// bitmap_to_csr on AVX-512 with VBMI2: vpcompressb of 0..63 gives a word's columns, which are widened and
// stored 16 (8 of int64) at a time. Stores stay within a row: what follows it may be another thread's.
#include <immintrin.h>

#include "ops/bitmap_to_csr/bitmap_to_csr.h"

namespace sparsecore::bitmap_to_csr {
namespace {

alignas(64) constexpr struct Iota {
  uint8_t at[64];
  constexpr Iota() : at() {
    for (int i = 0; i < 64; ++i) at[i] = static_cast<uint8_t>(i);
  }
} kIota;

SPARSECORE_INLINE __mmask16 first(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1);
}

SPARSECORE_INLINE void store(int32_t* out, int64_t count, const uint8_t* at, int64_t base) {
  const __m512i columns = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(at)));
  _mm512_mask_storeu_epi32(out, first(count), _mm512_add_epi32(columns, _mm512_set1_epi32(static_cast<int>(base))));
}
SPARSECORE_INLINE void store(int64_t* out, int64_t count, const uint8_t* at, int64_t base) {
  const __m512i start = _mm512_set1_epi64(base);
  const __m128i columns = _mm_load_si128(reinterpret_cast<const __m128i*>(at));
  const __mmask16 live = first(count);
  _mm512_mask_storeu_epi64(out, static_cast<__mmask8>(live), _mm512_add_epi64(_mm512_cvtepu8_epi64(columns), start));
  _mm512_mask_storeu_epi64(out + 8, static_cast<__mmask8>(live >> 8),
                           _mm512_add_epi64(_mm512_cvtepu8_epi64(_mm_unpackhi_epi64(columns, columns)), start));
}

template <class Index>
inline int64_t columns(const Args& a, int64_t begin, int64_t end) {
  const BitmapView& w = a.pattern;
  const int64_t words = bitmap_words(w.k);
  const __m512i iota = _mm512_load_si512(kIota.at);
  for (int64_t row = begin; row < end; ++row) {
    if (bitmap_check_row(w, row).fault != BitmapFault::none) return row;
    const uint8_t* mask = w.row_bits(row);
    Index* out = static_cast<Index*>(a.col) + w.row_offsets[row];
    for (int64_t word = 0; word < words; ++word) {
      const uint64_t bits = bitmap_word(mask, word);
      const int64_t count = __builtin_popcountll(bits);
      alignas(64) uint8_t at[64];
      _mm512_store_si512(at, _mm512_maskz_compress_epi8(bits, iota));
      for (int64_t j = 0; j < count; j += 16) store(out + j, count - j, at + j, word * 64);
      out += count;
    }
  }
  return -1;
}

int64_t run(const Args& a, int64_t begin, int64_t end) {
  return a.index == Dtype::i32 ? columns<int32_t>(a, begin, end) : columns<int64_t>(a, begin, end);
}

}  // namespace

extern const Kernel kernel_avx512;
const Kernel kernel_avx512 = {"bitmap_to_csr_avx512", cpu::Isa::avx512, run};

}  // namespace sparsecore::bitmap_to_csr
