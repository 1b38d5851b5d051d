// SPDX-License-Identifier: Apache-2.0
#include <tuple>

#include "ops/kv_compress/kv_compress.h"
#include "torch/cuda.h"

namespace sparsecore::kv_compress {
namespace {

using namespace binding;

std::tuple<Tensor, Tensor> kv_compress(const Tensor& x, int64_t keep) {
  check_device(x, "x");
  const DeviceGuard guard(x.get_device_index());
  SPARSECORE_REQUIRE(x.dim() >= 1, "x: must have at least one dimension, [..., head_dim]");
  Args args{};
  args.value = float_dtype(x, "x");
  const int64_t d = args.head_dim = x.size(x.dim() - 1);
  SPARSECORE_REQUIRE(kv_is_head_dim(d), "x: head_dim must be in [32, 256] and a multiple of 8, not ", d);
  SPARSECORE_REQUIRE(keep >= 0 && keep <= d, "keep: must be in [0, head_dim = ", d, "], not ", keep);
  args.keep = keep;
  const DenseInput in = dense_input(x);
  args.x = in.x.const_data_ptr();
  args.stride = in.stride;
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = 4 * kv_words(d);
  const Tensor bitmask = empty(aoti_torch_dtype_uint8(), sizes);
  sizes.back() = keep;
  const Tensor values = empty_like_dtype(x, sizes);
  args.bitmask = static_cast<uint8_t*>(bitmask.mutable_data_ptr());
  args.values = values.mutable_data_ptr();
  check_launch(launch(args, in.m, current_stream(x)), "kv_compress");
  return {bitmask, values};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CUDA, m) { m.impl("kv_compress", TORCH_BOX(&kv_compress)); }

}  // namespace sparsecore::kv_compress
