// SPDX-License-Identifier: Apache-2.0
// spmm_nm on NEON: the positions of 8 columns, a byte or half of one, pick a table-lookup control that spreads their
// values; an index out of range gives the zeros between.
#include "cpu/simd/vec_neon.h"
#include "ops/spmm_nm/spmm_nm.h"

namespace sparsecore::spmm_nm {
namespace {

constexpr int64_t kWordRows = 4;
constexpr int rows_together(int) { return 2; }

// Bits of positions that 8 columns have.
template <int n, int m>
constexpr int kStepBits = static_cast<int>(nm_code(n, m) * 8 / m);

// Rank, among the values of 8 columns, of column j under positions `code`; -1: it is not stored.
template <int n, int m>
constexpr int rank_of(unsigned code, int j) {
  if (nm_is_mask(n, m)) return code >> j & 1 ? __builtin_popcount(code & ((1u << j) - 1)) : -1;
  for (int r = 0; r < n; ++r) {
    const unsigned field = code >> (j / m * nm_code(n, m) + r * nm_field(m));
    if (static_cast<int>(field & (m - 1)) == j % m) return j / m * n + r;
  }
  return -1;
}

// Bytes of the values of 8 columns that go to each; 0xff: none.
template <int n, int m, int size>
struct Table {
  alignas(64) uint8_t at[1 << kStepBits<n, m>][8 * size];
  constexpr Table() : at() {
    for (unsigned code = 0; code < 1u << kStepBits<n, m>; ++code)
      for (int j = 0; j < 8; ++j) {
        const int rank = rank_of<n, m>(code, j);
        for (int b = 0; b < size; ++b) at[code][size * j + b] = static_cast<uint8_t>(rank < 0 ? 0xff : size * rank + b);
      }
  }
};

struct Pair {
  float32x4_t v[2];
};

struct F32 {
  using Element = float;
  template <int n, int m>
  struct Tables {
    static constexpr Table<n, m, 4> in{};
  };
  template <int n, int m>
  SPARSECORE_INLINE static Pair spread(unsigned code, const float* p) {
    const uint8x16x2_t eight = {{vreinterpretq_u8_f32(vld1q_f32(p)), vreinterpretq_u8_f32(vld1q_f32(p + 4))}};
    const uint8_t* control = Tables<n, m>::in.at[code];
    return {{vreinterpretq_f32_u8(vqtbl2q_u8(eight, vld1q_u8(control))),
             vreinterpretq_f32_u8(vqtbl2q_u8(eight, vld1q_u8(control + 16)))}};
  }
};

template <int n, int m>
struct Tables16 {
  static constexpr Table<n, m, 2> in{};
};
template <int n, int m>
SPARSECORE_INLINE uint16x8_t spread16(unsigned code, const uint16_t* p) {
  return vreinterpretq_u16_u8(vqtbl1q_u8(vreinterpretq_u8_u16(vld1q_u16(p)), vld1q_u8(Tables16<n, m>::in.at[code])));
}

struct Bf16 {
  using Element = uint16_t;
  template <int n, int m>
  SPARSECORE_INLINE static Pair spread(unsigned code, const uint16_t* p) {
    const uint16x8_t v = spread16<n, m>(code, p);
    return {{vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(v), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(v, 16))}};
  }
};

struct F16 {
  using Element = uint16_t;
  template <int n, int m>
  SPARSECORE_INLINE static Pair spread(unsigned code, const uint16_t* p) {
    const float16x8_t v = vreinterpretq_f16_u16(spread16<n, m>(code, p));
    return {{vcvt_f32_f16(vget_low_f16(v)), vcvt_high_f32_f16(v)}};
  }
};

struct I8 {
  using Element = int8_t;
  template <int n, int m>
  struct Tables {
    static constexpr Table<n, m, 1> in{};
  };
  template <int n, int m>
  SPARSECORE_INLINE static Pair spread(unsigned code, const int8_t* p) {
    const uint8x8_t bytes = vtbl1_u8(vreinterpret_u8_s8(vld1_s8(p)), vld1_u8(Tables<n, m>::in.at[code]));
    const int16x8_t v = vmovl_s8(vreinterpret_s8_u8(bytes));
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), vcvtq_f32_s32(vmovl_high_s16(v))}};
  }
};

struct Lanes : F32x4 {
  SPARSECORE_INLINE static float32x4_t gather(const float* x, const int16_t* cols) {
    float32x4_t out = vld1q_dup_f32(x + cols[0]);
    out = vld1q_lane_f32(x + cols[1], out, 1);
    out = vld1q_lane_f32(x + cols[2], out, 2);
    return vld1q_lane_f32(x + cols[3], out, 3);
  }
};

template <int n, int m, class V>
struct Word {
  using Element = typename V::Element;
  static constexpr int steps = 8, registers = 2;
  static constexpr bool interleaved = false, exact = false;
  static constexpr float unit = 1.0f;
  using Codes = uint64_t;
  struct X {
    const float* at;
  };
  using Step = Pair;
  SPARSECORE_INLINE static uint64_t open(const uint8_t* codes) { return nm_word<n, m>(codes); }
  SPARSECORE_INLINE static X load_x(const float* x, int s) { return {x + 8 * s}; }
  SPARSECORE_INLINE static Step step(uint64_t word, const Element* p, int s) {
    constexpr int bits = kStepBits<n, m>;
    return V::template spread<n, m>(static_cast<unsigned>(word >> bits * s & ((1 << bits) - 1)), p + s * 8 * n / m);
  }
  SPARSECORE_INLINE static float32x4_t mul(const X& x, const Step&, int q) { return vld1q_f32(x.at + 4 * q); }
};

}  // namespace
}  // namespace sparsecore::spmm_nm

#include "ops/spmm_nm/spmm_nm_simd.h"

namespace sparsecore::spmm_nm {
extern const Kernel kernel_neon;
const Kernel kernel_neon = {"spmm_nm_neon", cpu::Isa::neon, plan, pack, run};
}  // namespace sparsecore::spmm_nm
