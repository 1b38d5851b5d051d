// SPDX-License-Identifier: Apache-2.0
#include "ops/spmm_nm/spmm_nm.h"
#include "torch/cuda.h"
#include "torch/nm_arguments.h"

namespace sparsecore::spmm_nm {
namespace {

using namespace binding;

Tensor forward(const Tensor& x, const Tensor& values, const Tensor& positions, const std::optional<Tensor>& scales,
               const std::optional<Tensor>& bias, const std::optional<Tensor>& out) {
  check_device(x, "x");
  check_same_device(x, "x", values, "values");
  check_same_device(x, "x", positions, "positions");
  check_same_device(x, "x", scales, "scales");
  check_same_device(x, "x", bias, "bias");
  check_same_device(x, "x", out, "out");
  const DeviceGuard guard(x.get_device_index());
  const DenseInput in = dense_input(x);
  const Tensor stored = aligned(values, 16), words = aligned(positions, 16);
  const NmView weight = nm_view(stored, words, scales, in.k);
  Linear dense{in.m, weight.n, in.k, in.x.const_data_ptr(), in.stride, nullptr, nullptr, 0, float_dtype(x, "x")};
  dense.bias = bias_pointer(bias, x, weight.n);
  Tensor y = linear_output(x, weight.n, out);
  if (out) check_disjoint_nm(y, values, positions, scales, bias);
  dense.y = y.mutable_data_ptr();
  dense.y_stride = weight.n;
  check_launch(launch(dense, weight, current_stream(x)), "spmm_nm");
  return y;
}

Tensor spmm_nm(const Tensor& x, const Tensor& values, const Tensor& positions, const std::optional<Tensor>& scales,
               const std::optional<Tensor>& bias) {
  return forward(x, values, positions, scales, bias, std::nullopt);
}

void spmm_nm_out(const Tensor& x, const Tensor& values, const Tensor& positions, const std::optional<Tensor>& scales,
                 const std::optional<Tensor>& bias, const Tensor& out) {
  forward(x, values, positions, scales, bias, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CUDA, m) {
  m.impl("spmm_nm", TORCH_BOX(&spmm_nm));
  m.impl("_spmm_nm", TORCH_BOX(&spmm_nm));
  m.impl("spmm_nm.out", TORCH_BOX(&spmm_nm_out));
}

}  // namespace sparsecore::spmm_nm
