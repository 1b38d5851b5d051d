// SPDX-License-Identifier: Apache-2.0
// NEON verbs (ARMv8-A base). Included by *_neon.cpp alone; everything here has internal linkage.
#pragma once
#include <arm_neon.h>

#include "core/dtype.h"

namespace sparsecore {
namespace {

struct F32x4 {
  using reg = float32x4_t;
  static constexpr int64_t width = 4;
  static reg zero() { return vdupq_n_f32(0.0f); }
  static reg set1(float a) { return vdupq_n_f32(a); }
  static reg load(const float* p) { return vld1q_f32(p); }
  // A load that stays in its register: gcc would repeat it as an operand of every use.
  static reg pin(reg a) {
    asm("" : "+w"(a));
    return a;
  }
  // p[0..4), and its lane i everywhere.
  static reg load4(const float* p) { return vld1q_f32(p); }
  SPARSECORE_INLINE static reg pick(reg a, int i) {
    return i == 0   ? vdupq_laneq_f32(a, 0)
           : i == 1 ? vdupq_laneq_f32(a, 1)
           : i == 2 ? vdupq_laneq_f32(a, 2)
                    : vdupq_laneq_f32(a, 3);
  }
  static void store(float* p, reg a) { vst1q_f32(p, a); }
  static reg add(reg a, reg b) { return vaddq_f32(a, b); }
  static reg fma(reg a, reg b, reg c) { return vfmaq_f32(c, a, b); }
  static float sum(reg a) { return vaddvq_f32(a); }
  // Lane r: the sum of the register stored at p + r * stride.
  static reg sums(const float* p, int64_t stride) {
    return vpaddq_f32(vpaddq_f32(load(p), load(p + stride)), vpaddq_f32(load(p + 2 * stride), load(p + 3 * stride)));
  }
  // t[i][j] and t[j][i] change places.
  static void transpose(reg* t) {
    const float32x4x2_t a = vtrnq_f32(t[0], t[1]), b = vtrnq_f32(t[2], t[3]);
    t[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
    t[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
    t[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
    t[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
  }
  // base[index[0..4)]; lane loads, ARMv8-A has no gather
  static reg gather(const float* base, const int32_t* index) {
    reg r = vld1q_dup_f32(base + index[0]);
    r = vld1q_lane_f32(base + index[1], r, 1);
    r = vld1q_lane_f32(base + index[2], r, 2);
    return vld1q_lane_f32(base + index[3], r, 3);
  }
};

// A row of four floats in a register.
struct Fours : F32x4 {
  static constexpr int rows = 1;
  using F32x4::load;
  static reg load(const uint16_t* p, Dtype d) {
    const uint16x4_t h = vld1_u16(p);
    return d == Dtype::bf16 ? vreinterpretq_f32_u32(vshll_n_u16(h, 16)) : vcvt_f32_f16(vreinterpret_f16_u16(h));
  }
  SPARSECORE_INLINE static reg spread(reg a, int i) { return pick(a, i); }
  static reg gather(const float* base, const int32_t* cols) { return load(base + 4 * int64_t{cols[0]}); }
  static F32x4::reg fold(reg a) { return a; }
};

using Wide = F32x4;
// Registers that hold a panel of T floats.
template <int T>
struct PanelVec {
  using type = F32x4;
};

// Sums that a dense tile keeps in registers: rows of W, registers of a panel.
constexpr int kTileRows = 6, kTileRegisters = 4;

constexpr int64_t kWiden = 4;  // elements the widening loads take

inline void widen(const uint16_t* in, Dtype d, float* out) { vst1q_f32(out, Fours::load(in, d)); }
inline void widen(const int8_t* in, float* out) {
  for (int i = 0; i < 4; ++i) out[i] = in[i];
}

// How many of the leading columns of cols[0..count), which rise, lie below `limit`.
inline int64_t count_below(const int32_t* cols, int64_t count, int32_t limit) {
  const int32x4_t bound = vdupq_n_s32(limit);
  int64_t p = 0;
  while (p + 4 <= count && vminvq_u32(vcltq_s32(vld1q_s32(cols + p), bound)) != 0) p += 4;
  while (p < count && cols[p] < limit) ++p;
  return p;
}

// Whether cols[0..count) rise strictly.
inline bool rises(const int32_t* cols, int64_t count) {
  uint32x4_t rise = vdupq_n_u32(~0u);
  int64_t p = 1;
  for (; p + 4 <= count; p += 4) rise = vandq_u32(rise, vcgtq_s32(vld1q_s32(cols + p), vld1q_s32(cols + p - 1)));
  bool tail = true;
  for (; p < count; ++p) tail &= cols[p] > cols[p - 1];
  return vminvq_u32(rise) == ~0u && tail;
}

}  // namespace
}  // namespace sparsecore
