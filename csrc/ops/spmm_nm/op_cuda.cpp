// SPDX-License-Identifier: Apache-2.0
#include "ops/spmm_nm/spmm_nm.h"
#include "torch/cuda.h"
#include "torch/nm_arguments.h"

namespace sparsecore::spmm_nm {
namespace {

using namespace binding;

Tensor forward(const Tensor& x, const Tensor& values, const Tensor& positions, const std::optional<Tensor>& scales,
               const std::optional<Tensor>& bias, const std::optional<Tensor>& out,
               const std::optional<Tensor>& residual = std::nullopt, int64_t activation = 0) {
  check_device(x, "x");
  check_same_device(x, "x", values, "values");
  check_same_device(x, "x", positions, "positions");
  check_same_device(x, "x", scales, "scales");
  check_same_device(x, "x", bias, "bias");
  check_same_device(x, "x", out, "out");
  check_same_device(x, "x", residual, "residual");
  const DeviceGuard guard(x.get_device_index());
  const Tensor stored = aligned(values, 16), words = aligned(positions, 16);
  Linear dense;
  NmView weight;
  const NmProduct made = nm_product(dense, weight, x, stored, words, scales, bias, out, residual, activation);
  check_launch(launch(dense, weight, current_stream(x)), "spmm_nm");
  return made.y;
}

Tensor spmm_nm(const Tensor& x, const Tensor& values, const Tensor& positions, const std::optional<Tensor>& scales,
               const std::optional<Tensor>& bias) {
  return forward(x, values, positions, scales, bias, std::nullopt);
}

void spmm_nm_out(const Tensor& x, const Tensor& values, const Tensor& positions, const std::optional<Tensor>& scales,
                 const std::optional<Tensor>& bias, const Tensor& out) {
  forward(x, values, positions, scales, bias, out);
}

Tensor spmm_nm_fused(const Tensor& x, const Tensor& values, const Tensor& positions,
                     const std::optional<Tensor>& scales, const std::optional<Tensor>& bias,
                     const std::optional<Tensor>& residual, int64_t activation) {
  return forward(x, values, positions, scales, bias, std::nullopt, residual, activation);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CUDA, m) {
  m.impl("spmm_nm", TORCH_BOX(&spmm_nm));
  m.impl("_spmm_nm", TORCH_BOX(&spmm_nm));
  m.impl("spmm_nm.out", TORCH_BOX(&spmm_nm_out));
  m.impl("spmm_nm_fused", TORCH_BOX(&spmm_nm_fused));
  m.impl("_spmm_nm_fused", TORCH_BOX(&spmm_nm_fused));
}

}  // namespace sparsecore::spmm_nm
