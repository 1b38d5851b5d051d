// SPDX-License-Identifier: Apache-2.0
// One scale a row for values of 8 bits: the row's absolute maximum over the largest code.
#pragma once
#include "core/dtype.h"

namespace sparsecore {

constexpr float largest_code(Dtype d) { return d == Dtype::f8 ? 448.0f : 127.0f; }

// Scale of a row whose largest magnitude has these bits (NaN is the largest of all). A subnormal quotient
// is coarse: where `top` of it fall short of the largest, the next number is taken.
SPARSECORE_INLINE float row_scale(uint32_t magnitude, float top = 127.0f) {
  const float largest = bits_to_f32(magnitude), scale = largest / top;
  const uint32_t bits = f32_to_bits(scale);
  const bool low =
      bits < 0x00800000u && static_cast<double>(top) * static_cast<double>(scale) < static_cast<double>(largest);
  return low ? bits_to_f32(bits + 1) : scale;
}

SPARSECORE_INLINE bool usable_scale(float scale) { return scale > 0.0f && f32_to_bits(scale) < 0x7f800000u; }

}  // namespace sparsecore
