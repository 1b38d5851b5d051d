// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_decompress/kv_decompress.h"
#include "torch/cuda.h"
#include "torch/kv_arguments.h"

namespace sparsecore::kv_decompress {
namespace {

using namespace binding;

Tensor kv_decompress(const Tensor& bitmask, const Tensor& values, int64_t head_dim) {
  check_device(values, "values");
  check_same_device(values, "values", bitmask, "bitmask");
  const DeviceGuard guard(values.get_device_index());
  const Tensor words = aligned(bitmask, 4);
  Args args{};
  Tensor dense;
  const int64_t rows = kv_decompressed(args, words, values, head_dim, dense);
  check_launch(launch(args, rows, current_stream(values)), "kv_decompress");
  return dense;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CUDA, m) { m.impl("kv_decompress", TORCH_BOX(&kv_decompress)); }

}  // namespace sparsecore::kv_decompress
