// SPDX-License-Identifier: Apache-2.0
#include <tuple>

#include "ops/kv_compress/kv_compress.h"
#include "torch/cuda.h"
#include "torch/kv_arguments.h"

namespace sparsecore::kv_compress {
namespace {

using namespace binding;

std::tuple<Tensor, Tensor> kv_compress(const Tensor& x, int64_t keep, const std::optional<Tensor>& weight) {
  check_device(x, "x");
  check_same_device(x, "x", weight, "weight");
  const DeviceGuard guard(x.get_device_index());
  Args args{};
  const KvCompressed out = kv_compressed(args, x, keep, weight);
  check_launch(launch(args, out.x.m, current_stream(x)), "kv_compress");
  return {out.bitmask, out.values};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CUDA, m) { m.impl("kv_compress", TORCH_BOX(&kv_compress)); }

}  // namespace sparsecore::kv_compress
