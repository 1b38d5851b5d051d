// SPDX-License-Identifier: Apache-2.0
// What follows a sum of a weight op: y = activation(sum * scale + bias) + residual. Loops over neighbours in a row of
// y, which the compiler turns into vectors.
#pragma once
#include "core/activation.h"

namespace sparsecore {
namespace {

// sums[0, count) of row i of x and rows [row, row + count) of W, scaled and with their bias, to y.
inline void finish_row(const Linear& a, int64_t i, int64_t row, float* z, int64_t count) {
  switch (a.activation) {
    case Activation::none: break;
    case Activation::relu:
      for (int64_t r = 0; r < count; ++r) z[r] = z[r] < 0.0f ? 0.0f : z[r];  // NaN stays
      break;
    case Activation::gelu:
      for (int64_t r = 0; r < count; ++r) z[r] = gelu(z[r]);
      break;
    case Activation::gelu_tanh:
      for (int64_t r = 0; r < count; ++r) z[r] = gelu_tanh(z[r]);
      break;
    case Activation::silu:
      for (int64_t r = 0; r < count; ++r) z[r] = gated(z[r], z[r]);
      break;
  }
  const int64_t out = i * a.y_stride + row, at = i * a.residual_stride + row;
  if (a.dtype == Dtype::f32) {
    float* y = static_cast<float*>(a.y) + out;
    const float* residual = static_cast<const float*>(a.residual) + (a.residual ? at : 0);
    if (a.residual)
      for (int64_t r = 0; r < count; ++r) y[r] = z[r] + residual[r];
    else
      for (int64_t r = 0; r < count; ++r) y[r] = z[r];
    return;
  }
  for (int64_t r = 0; a.residual && r < count; ++r) z[r] += load_f32(a.residual, a.dtype, at + r);
  for (int64_t r = 0; r < count; ++r) store_f32(a.y, a.dtype, out + r, z[r]);
}

}  // namespace
}  // namespace sparsecore
