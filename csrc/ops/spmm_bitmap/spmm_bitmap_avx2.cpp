// SPDX-License-Identifier: Apache-2.0
// spmm_bitmap on AVX2: the loops over this ISA's expansion.
#include "cpu/simd/expand_avx2.h"
#include "ops/spmm_bitmap/spmm_bitmap.h"

namespace sparsecore::spmm_bitmap {
namespace {

constexpr int64_t kExpandRows = 16;
constexpr double kListDensity4 = 0.0;
constexpr int rows_together(int m) { return m == 1 || m == 8 ? 1 : 2; }

// Columns of the set bits.
constexpr Table<uint8_t, 8> kColumns(0,
                                     [](uint8_t* e, unsigned j, unsigned rank) { e[rank] = static_cast<uint8_t>(j); });

inline int32_t* decode_word(uint64_t bits, int32_t base, int32_t* out) {
#pragma GCC unroll 8
  for (int s = 0; s < 8; ++s) {
    const uint64_t entry = entry_of<3>(bits, s);
    const __m256i columns = _mm256_cvtepu8_epi32(_mm_loadl_epi64(entry_at(kColumns, entry)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_add_epi32(columns, _mm256_set1_epi32(base + 8 * s)));
    out += __builtin_popcountll(entry);
  }
  return out;
}

}  // namespace
}  // namespace sparsecore::spmm_bitmap

#include "ops/spmm_bitmap/spmm_bitmap_simd.h"

namespace sparsecore::spmm_bitmap {
extern const Kernel kernel_avx2;
const Kernel kernel_avx2 = {"spmm_bitmap_avx2", cpu::Isa::avx2, plan, pack, run};
}  // namespace sparsecore::spmm_bitmap
