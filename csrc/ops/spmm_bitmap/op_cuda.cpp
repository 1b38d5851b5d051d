// SPDX-License-Identifier: Apache-2.0
#include "ops/spmm_bitmap/spmm_bitmap.h"
#include "torch/bitmap_arguments.h"
#include "torch/cuda.h"

namespace sparsecore::spmm_bitmap {
namespace {

using namespace binding;

Tensor forward(const Tensor& x, const Tensor& bitmask, const Tensor& row_offsets, const Tensor& values,
               const std::optional<Tensor>& scales, const std::optional<Tensor>& bias,
               const std::optional<Tensor>& out) {
  check_device(x, "x");
  check_same_device(x, "x", bitmask, "bitmask");
  check_same_device(x, "x", row_offsets, "row_offsets");
  check_same_device(x, "x", values, "values");
  check_same_device(x, "x", scales, "scales");
  check_same_device(x, "x", bias, "bias");
  check_same_device(x, "x", out, "out");
  const DeviceGuard guard(x.get_device_index());
  const DenseInput in = dense_input(x);
  const Tensor words = aligned(bitmask, 4);
  BitmapView weight = bitmap_view(words, row_offsets, values, scales, in.k);
  Linear dense{in.m, weight.n, in.k, in.x.const_data_ptr(), in.stride, nullptr, nullptr, 0, float_dtype(x, "x")};
  dense.bias = bias_pointer(bias, x, weight.n);
  Tensor y = linear_output(x, weight.n, out);
  if (out) check_disjoint_weight(y, bitmask, row_offsets, values, scales, bias);
  dense.y = y.mutable_data_ptr();
  dense.y_stride = weight.n;
  check_launch(launch(dense, weight, current_stream(x)), "spmm_bitmap");
  return y;
}

Tensor spmm_bitmap(const Tensor& x, const Tensor& bitmask, const Tensor& row_offsets, const Tensor& values,
                   const std::optional<Tensor>& scales, const std::optional<Tensor>& bias) {
  return forward(x, bitmask, row_offsets, values, scales, bias, std::nullopt);
}

void spmm_bitmap_out(const Tensor& x, const Tensor& bitmask, const Tensor& row_offsets, const Tensor& values,
                     const std::optional<Tensor>& scales, const std::optional<Tensor>& bias, const Tensor& out) {
  forward(x, bitmask, row_offsets, values, scales, bias, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CUDA, m) {
  m.impl("spmm_bitmap", TORCH_BOX(&spmm_bitmap));
  m.impl("_spmm_bitmap", TORCH_BOX(&spmm_bitmap));
  m.impl("spmm_bitmap.out", TORCH_BOX(&spmm_bitmap_out));
}

}  // namespace sparsecore::spmm_bitmap
