// SPDX-License-Identifier: Apache-2.0
// spmm_bitmap on NEON: the loops over this ISA's expansion.
#include "cpu/simd/expand_neon.h"
#include "ops/spmm_bitmap/spmm_bitmap.h"

namespace sparsecore::spmm_bitmap {
namespace {

constexpr int64_t kExpandRows = 4;
constexpr double kListDensity4 = 0.0;
constexpr int rows_together(int) { return 2; }

inline int32_t* decode_word(uint64_t bits, int32_t base, int32_t* out) {
  for (int s = 0; s < 8; ++s) {
    const unsigned m = bits >> 8 * s & 0xff;
    const int32x4_t first = vdupq_n_s32(base + 8 * s);
    const uint16x8_t columns = vmovl_u8(vld1_u8(kRanks.columns[m]));
    vst1q_s32(out, vaddq_s32(first, vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(columns)))));
    vst1q_s32(out + 4, vaddq_s32(first, vreinterpretq_s32_u32(vmovl_high_u16(columns))));
    out += kRanks.population[m];
  }
  return out;
}

}  // namespace
}  // namespace sparsecore::spmm_bitmap

#include "ops/spmm_bitmap/spmm_bitmap_simd.h"

namespace sparsecore::spmm_bitmap {
extern const Kernel kernel_neon;
const Kernel kernel_neon = {"spmm_bitmap_neon", cpu::Isa::neon, plan, pack, run};
}  // namespace sparsecore::spmm_bitmap
