// SPDX-License-Identifier: Apache-2.0
#include "ops/bitmap_to_dense/bitmap_to_dense.h"
#include "torch/bitmap_arguments.h"
#include "torch/cuda.h"

namespace sparsecore::bitmap_to_dense {
namespace {

using namespace binding;

Tensor bitmap_to_dense(const Tensor& bitmask, const Tensor& row_offsets, const Tensor& values,
                       const std::optional<Tensor>& scales, int64_t k) {
  check_device(bitmask, "bitmask");
  check_same_device(bitmask, "bitmask", row_offsets, "row_offsets");
  check_same_device(bitmask, "bitmask", values, "values");
  check_same_device(bitmask, "bitmask", scales, "scales");
  const DeviceGuard guard(bitmask.get_device_index());
  const Tensor words = aligned(bitmask, 4);
  Args args{bitmap_view(words, row_offsets, values, scales, k), nullptr};
  const Tensor dense = empty(args.weight.value == Dtype::i8 ? Dtype::f32 : args.weight.value, {args.weight.n, k});
  args.dense = dense.mutable_data_ptr();
  check_launch(launch(args, current_stream(bitmask)), "bitmap_to_dense");
  return dense;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CUDA, m) { m.impl("bitmap_to_dense", TORCH_BOX(&bitmap_to_dense)); }

}  // namespace sparsecore::bitmap_to_dense
