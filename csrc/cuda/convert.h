// SPDX-License-Identifier: Apache-2.0
// Elements as memory holds them, to fp32 and back.
#pragma once
#include "core/dtype.h"
#include "cuda/ptx.h"

namespace sparsecore::cuda {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

SPARSECORE_DEVICE float widen(float v) { return v; }
SPARSECORE_DEVICE float widen(int8_t v) { return static_cast<float>(v); }
SPARSECORE_DEVICE float widen(Bf16 v) { return __uint_as_float(static_cast<uint32_t>(v.bits) << 16); }
SPARSECORE_DEVICE float widen(F16 v) { return ptx::f16_to_f32(v.bits); }

// Element i of an array of float32, bfloat16 or float16.
SPARSECORE_DEVICE float load_float(const void* base, Dtype d, int64_t i) {
  if (d == Dtype::bf16) return widen(static_cast<const Bf16*>(base)[i]);
  if (d == Dtype::f16) return widen(static_cast<const F16*>(base)[i]);
  return static_cast<const float*>(base)[i];
}

// Rounds to nearest, ties to even.
SPARSECORE_DEVICE void store_float(void* base, Dtype d, int64_t i, float value) {
  if (d == Dtype::bf16) static_cast<uint16_t*>(base)[i] = ptx::f32_to_bf16(value);
  else if (d == Dtype::f16) static_cast<uint16_t*>(base)[i] = ptx::f32_to_f16(value);
  else static_cast<float*>(base)[i] = value;
}

// The same for sums in float or in double, which is float64's alone.
template <class Sum>
SPARSECORE_DEVICE Sum load_number(const void* base, Dtype d, int64_t i) {
  if constexpr (sizeof(Sum) == 8) return static_cast<const Sum*>(base)[i];
  else return load_float(base, d, i);
}
template <class Sum>
SPARSECORE_DEVICE void store_number(void* base, Dtype d, int64_t i, Sum value) {
  if constexpr (sizeof(Sum) == 8) static_cast<Sum*>(base)[i] = value;
  else store_float(base, d, i, value);
}

// a * b + c, rounded once.
SPARSECORE_DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
SPARSECORE_DEVICE double multiply_add(double a, double b, double c) { return fma(a, b, c); }

}  // namespace sparsecore::cuda
