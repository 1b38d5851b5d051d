// SPDX-License-Identifier: Apache-2.0
// The dense side of a weight op, y = x · Wᵀ + bias, and how a kernel means to walk it.
#pragma once
#include <cstdint>

#include "core/dtype.h"

namespace sparsecore {

// Of y before it is stored: none, max(z, 0), z Phi(z), the same by tanh, z / (1 + e^-z).
enum class Activation : int32_t { none, relu, gelu, gelu_tanh, silu };

struct Linear {
  int64_t m, n, k;
  const void* x;      // [m, k] of dtype, row i at x + i * x_stride elements, columns adjacent
  int64_t x_stride;
  const void* bias;   // [n] of dtype, or null
  void* y;            // [m, n] of dtype, row i at y + i * y_stride elements; aliases nothing
  int64_t y_stride;
  Dtype dtype;        // f32, bf16, f16
  // spmm_nm alone: y = activation(x Wᵀ + bias) + residual
  const void* residual = nullptr;  // [m, n] of dtype, row i at residual + i * residual_stride elements, or null
  int64_t residual_stride = 0;
  Activation activation = Activation::none;

  SPARSECORE_INLINE bool plain() const { return !residual && activation == Activation::none; }
};

// Chosen by a kernel for one call. Two ways to hold x in fp32:
//   tile == 0   rows:   packed[i * k + c] = x[i, c]             dot products along k, few rows of x
//   tile == T   panels: packed[(i / T * k + c) * T + i % T]     T rows of x side by side per column,
//               slots of rows >= m are 0                        axpy along m, one nonzero at a time
struct Plan {
  int64_t tile = 0;
  int64_t k_block = 0;        // columns per pass over a chunk of rows (panels); >= k: one pass
  int64_t chunk_rows = 1;     // panels: rows of W decoded together, 1: a row at a time; else rows of x a pass
  int64_t packed_floats = 0;  // 0: x is read in place
  int64_t scratch_bytes = 0;  // per thread
  bool dense_tiles = false;   // panels: expand W's blocks to dense tiles (x finite), else axpy
};

// A kernel's pack fills packed in independent pieces, a range of columns each.
constexpr int64_t kPackColumns = 1024;
constexpr int64_t pack_pieces(const Plan& plan, int64_t k) {
  return plan.packed_floats == 0 ? 0 : (k + kPackColumns - 1) / kPackColumns;
}

}  // namespace sparsecore
