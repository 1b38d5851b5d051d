// SPDX-License-Identifier: Apache-2.0
// Activations of a sum, the same on every device: no call of a library.
#pragma once
#include "core/linear.h"

namespace sparsecore {

// e^x. x = n ln 2 + r, |r| <= ln 2 / 2: Taylor to r^6 is off by 2^-24 of e^r; 2^n from the low bits of n + 1.5 * 2^23.
// 0 below -87.3; infinity from 88.8 on; NaN stays.
SPARSECORE_INLINE float exp_f32(float x) {
  const float low = x < -87.3f ? -87.3f : x, in = low > 88.8f ? 88.8f : low;
  const float shifted = in * 0x1.715476p0f + 0x1.8p23f, n = shifted - 0x1.8p23f;
  const float r = (in - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;  // ln 2 in two parts, the first of 15 bits
  const float tail = 1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720));
  const float e = 1.0f + (r + r * r * (0.5f + r * (1.0f / 6 + r * tail)));
  const float power = bits_to_f32((f32_to_bits(shifted) << 23) + 0x3f800000u);
  return x < -87.3f ? 0.0f : e * power;
}

// z / (1 + e^-s): z times the logistic of s.
SPARSECORE_INLINE float gated(float z, float s) { return z / (1.0f + exp_f32(-s)); }

// z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2
SPARSECORE_INLINE float gelu_tanh(float z) { return gated(z, 0x1.988454p0f * (z + 0.044715f * z * z * z)); }

// z (1 + erf(z / sqrt 2)) / 2 with erfc(x) = e^-x^2 times a polynomial of 1 / (1 + p x), off by 1.5e-7 at most:
// Abramowitz and Stegun, 1964, 7.1.26.
SPARSECORE_INLINE float gelu(float z) {
  const float x = __builtin_fabsf(z) * 0x1.6a09e6p-1f, t = 1.0f / (1.0f + 0.3275911f * x);
  const float sum = 1.421413741f + t * (-1.453152027f + t * 1.061405429f);
  const float tail = t * (0.254829592f + t * (-0.284496736f + t * sum)) * exp_f32(-x * x);
  const float half = tail > 0.0f ? 0.5f * z * tail : 0.0f;  // where z is infinite, too
  return z < 0.0f ? half : z - half;
}

SPARSECORE_INLINE float activated(float z, Activation kind) {
  switch (kind) {
    case Activation::relu: return z < 0.0f ? 0.0f : z;  // NaN stays
    case Activation::gelu: return gelu(z);
    case Activation::gelu_tanh: return gelu_tanh(z);
    case Activation::silu: return gated(z, z);
    default: return z;
  }
}

}  // namespace sparsecore
