// SPDX-License-Identifier: Apache-2.0
#include "ops/nm_to_dense/nm_to_dense.h"
#include "torch/cuda.h"
#include "torch/nm_arguments.h"

namespace sparsecore::nm_to_dense {
namespace {

using namespace binding;

Tensor nm_to_dense(const Tensor& values, const Tensor& positions, const std::optional<Tensor>& scales, int64_t k) {
  check_device(values, "values");
  check_same_device(values, "values", positions, "positions");
  check_same_device(values, "values", scales, "scales");
  const DeviceGuard guard(values.get_device_index());
  const Tensor stored = aligned(values, 16), words = aligned(positions, 16);
  Args args{nm_view(stored, words, scales, k), nullptr};
  const Tensor dense = empty(scaled(args.weight.value) ? Dtype::f32 : args.weight.value, {args.weight.n, k});
  args.dense = dense.mutable_data_ptr();
  check_launch(launch(args, current_stream(values)), "nm_to_dense");
  return dense;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CUDA, m) { m.impl("nm_to_dense", TORCH_BOX(&nm_to_dense)); }

}  // namespace sparsecore::nm_to_dense
