// SPDX-License-Identifier: Apache-2.0
// Expansion on NEON: a byte of bits picks a table-lookup control, 8 columns a step; an index out of range gives
// zero, which clears what is not stored.
//
// Expand<type> gives Element, lanes (columns a step), parts (registers a step), unit (of a sum), and
//   expand(p, word, s, out)   step s of a word of bits: the next values of p in the lanes of its columns, 0 in others;
//                             returns p past them. Reads a register from p on, whatever is set
//   load(p, out)              the same of a step whose bits are all set
// interleaved: lane l of part q is column l * parts + q of the step, else q * width + l.
#pragma once
#include "cpu/simd/vec_neon.h"

namespace sparsecore {
namespace {

// Controls of tbl for the byte (or half byte) of bits m: element j takes the bytes of value `rank`, how
// many lower bits of m are set.
template <int size, int bits>
struct Table {
  alignas(64) uint8_t at[1 << bits][bits * size];
  constexpr Table() : at() {
    for (unsigned m = 0; m < 1u << bits; ++m) {
      unsigned rank = 0;
      for (unsigned j = 0; j < bits; ++j) {
        const bool set = m >> j & 1;
        for (unsigned b = 0; b < size; ++b) at[m][size * j + b] = static_cast<uint8_t>(set ? size * rank + b : 0xff);
        rank += set;
      }
    }
  }
};
constexpr Table<4, 4> kExpand32;
constexpr Table<2, 8> kExpand16;
constexpr Table<1, 8> kExpand8;

struct Ranks {
  alignas(64) uint8_t columns[256][8];  // of the set bits
  uint8_t population[256];
  constexpr Ranks() : columns(), population() {
    for (unsigned m = 0; m < 256; ++m)
      for (unsigned j = 0; j < 8; ++j)
        if (m >> j & 1) columns[m][population[m]++] = static_cast<uint8_t>(j);
  }
};
constexpr Ranks kRanks;

struct Expand {
  static constexpr int lanes = 8, parts = 2;
  static constexpr float unit = 1.0f;
  static constexpr bool interleaved = false;
};

struct ExpandF32 : Expand {
  using Element = float;
  SPARSECORE_INLINE static const float* expand(const float* p, uint64_t word, int s, float32x4_t* out) {
    const unsigned m = word >> 8 * s & 0xff;
    const float* half = p + kRanks.population[m & 15];
    out[0] = vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(vld1q_f32(p)), vld1q_u8(kExpand32.at[m & 15])));
    out[1] = vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(vld1q_f32(half)), vld1q_u8(kExpand32.at[m >> 4])));
    return p + kRanks.population[m];
  }
  SPARSECORE_INLINE static void load(const float* p, float32x4_t* out) {
    out[0] = vld1q_f32(p);
    out[1] = vld1q_f32(p + 4);
  }
};

SPARSECORE_INLINE uint16x8_t expand16(const uint16_t* p, unsigned m) {
  return vreinterpretq_u16_u8(vqtbl1q_u8(vreinterpretq_u8_u16(vld1q_u16(p)), vld1q_u8(kExpand16.at[m])));
}

struct ExpandBf16 : Expand {
  using Element = uint16_t;
  SPARSECORE_INLINE static const uint16_t* expand(const uint16_t* p, uint64_t word, int s, float32x4_t* out) {
    const unsigned m = word >> 8 * s & 0xff;
    const uint16x8_t v = expand16(p, m);
    out[0] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(v), 16));
    out[1] = vreinterpretq_f32_u32(vshll_high_n_u16(v, 16));
    return p + kRanks.population[m];
  }
  SPARSECORE_INLINE static void load(const uint16_t* p, float32x4_t* out) {
    const uint16x8_t v = vld1q_u16(p);
    out[0] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(v), 16));
    out[1] = vreinterpretq_f32_u32(vshll_high_n_u16(v, 16));
  }
};

struct ExpandF16 : Expand {
  using Element = uint16_t;
  SPARSECORE_INLINE static const uint16_t* expand(const uint16_t* p, uint64_t word, int s, float32x4_t* out) {
    const unsigned m = word >> 8 * s & 0xff;
    const float16x8_t v = vreinterpretq_f16_u16(expand16(p, m));
    out[0] = vcvt_f32_f16(vget_low_f16(v));
    out[1] = vcvt_high_f32_f16(v);
    return p + kRanks.population[m];
  }
  SPARSECORE_INLINE static void load(const uint16_t* p, float32x4_t* out) {
    const float16x8_t v = vreinterpretq_f16_u16(vld1q_u16(p));
    out[0] = vcvt_f32_f16(vget_low_f16(v));
    out[1] = vcvt_high_f32_f16(v);
  }
};

struct ExpandI8 : Expand {
  using Element = int8_t;
  SPARSECORE_INLINE static const int8_t* expand(const int8_t* p, uint64_t word, int s, float32x4_t* out) {
    const unsigned m = word >> 8 * s & 0xff;
    const uint8x8_t bytes = vtbl1_u8(vreinterpret_u8_s8(vld1_s8(p)), vld1_u8(kExpand8.at[m]));
    const int16x8_t v = vmovl_s8(vreinterpret_s8_u8(bytes));
    out[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(v)));
    out[1] = vcvtq_f32_s32(vmovl_high_s16(v));
    return p + kRanks.population[m];
  }
};

}  // namespace
}  // namespace sparsecore
