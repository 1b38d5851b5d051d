// SPDX-License-Identifier: Apache-2.0
// spgemm on NEON: words with columns are looked for 8 at a time, products are staged 4 (2 of fp64) at a time. The
// rest are the plain loops, which compile to FMA and CNT: a sum is one load and store, wherever its column lies.
#include <arm_neon.h>

#include "ops/spgemm/spgemm_simd.h"

namespace sparsecore::spgemm {
namespace {

struct NeonLanes : PlainLanes {
  static int64_t touched(const uint64_t* bits, int64_t count, int32_t* list) {
    int64_t found = 0, w = 0;
    for (; w + 8 <= count; w += 8) {
      const uint64x2_t a = vorrq_u64(vld1q_u64(bits + w), vld1q_u64(bits + w + 2)),
                       b = vorrq_u64(vld1q_u64(bits + w + 4), vld1q_u64(bits + w + 6));
      if (vmaxvq_u32(vreinterpretq_u32_u64(vorrq_u64(a, b))) == 0) continue;
      for (int64_t i = w; i < w + 8; ++i) {
        list[found] = static_cast<int32_t>(i);
        found += bits[i] != 0;
      }
    }
    for (; w < count; ++w) {
      list[found] = static_cast<int32_t>(w);
      found += bits[w] != 0;
    }
    return found;
  }

  static void columns4(const int32_t* col, int32_t* out) { vst1q_s32(out, vld1q_s32(col)); }
  static void columns4(const int64_t* col, int32_t* out) {
    vst1q_s32(out, vcombine_s32(vmovn_s64(vld1q_s64(col)), vmovn_s64(vld1q_s64(col + 2))));
  }
  static void elements4(const float* values, float a, float* factors, float* elements) {
    vst1q_f32(factors, vdupq_n_f32(a));
    vst1q_f32(elements, vld1q_f32(values));
  }
  static void elements4(const double* values, double a, double* factors, double* elements) {
    for (int h = 0; h < 4; h += 2) {
      vst1q_f64(factors + h, vdupq_n_f64(a));
      vst1q_f64(elements + h, vld1q_f64(values + h));
    }
  }
  template <class T, class Index>
  static void stage(const Index* col, const T* values, T a, int64_t count, int32_t* columns, T* factors, T* elements) {
    int64_t j = 0;
    if constexpr (kReal<T> || !kValues<T>) {
      for (; j + 4 <= count; j += 4) {
        columns4(col + j, columns + j);
        if constexpr (kValues<T>) elements4(values + j, a, factors + j, elements + j);
      }
    }
    const int64_t at = j * kValues<T>;
    PlainLanes::stage(col + j, values + at, a, count - j, columns + j, factors + at, elements + at);
  }
};

}  // namespace

extern const Kernel kernel_neon;
const Kernel kernel_neon = kernel_of<NeonLanes>("spgemm_neon", cpu::Isa::neon);

}  // namespace sparsecore::spgemm
