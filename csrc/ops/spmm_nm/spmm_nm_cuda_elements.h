// SPDX-License-Identifier: Apache-2.0
// Stored elements as spmm_nm's CUDA kernels load them, and what a sum becomes.
#pragma once
#include "core/activation.h"
#include "cuda/nm.h"
#include "ops/spmm_nm/spmm_nm.h"

namespace sparsecore::spmm_nm {
namespace {

using namespace cuda;

// Q adjacent elements, aligned to the greatest power of two that divides their bytes, or to 16.
template <int Q, class V>
SPARSECORE_DEVICE void load_all(const V* p, V (&out)[Q]) {
  constexpr int kBytes = Q * static_cast<int>(sizeof(V)), kLowest = kBytes & -kBytes;
  constexpr int P = (kLowest < 16 ? kLowest : 16) / static_cast<int>(sizeof(V));
#pragma unroll
  for (int q = 0; q < Q; q += P) {
    const Pack<V, P> pack = load_pack<P>(p + q);
#pragma unroll
    for (int i = 0; i < P; ++i) out[q + i] = pack.at[i];
  }
}

SPARSECORE_DEVICE_CALL float after_sum(float z, Activation activation) { return activated(z, activation); }

// y[i, row] of a sum; NaN where row breaks an invariant.
SPARSECORE_DEVICE void finish(const Linear& d, const NmView& w, int64_t i, int64_t row, bool good, float sum) {
  const float scale = w.scales ? w.scales[row] : 1.0f;
  float z = sum * scale + (d.bias ? load_float(d.bias, d.dtype, row) : 0.0f);
  if (d.activation != Activation::none) z = after_sum(z, d.activation);
  if (d.residual) z += load_float(d.residual, d.dtype, i * d.residual_stride + row);
  store_float(d.y, d.dtype, i * d.y_stride + row, good ? z : __uint_as_float(0x7fffffffu));
}

}  // namespace
}  // namespace sparsecore::spmm_nm
