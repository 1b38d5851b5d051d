// SPDX-License-Identifier: Apache-2.0
// spmm_bitmap on AVX-512: the loops over this ISA's expansion.
#include "cpu/simd/expand_avx512.h"
#include "ops/spmm_bitmap/spmm_bitmap.h"

namespace sparsecore::spmm_bitmap {
namespace {

constexpr int64_t kExpandRows = 16;
constexpr double kListDensity4 = 0.13;
constexpr int rows_together(int m) { return m <= 4 ? 4 : 2; }

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
