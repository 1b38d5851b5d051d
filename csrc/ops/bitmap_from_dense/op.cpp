// SPDX-License-Identifier: Apache-2.0
#include "ops/bitmap_from_dense/bitmap_from_dense.h"

#include <limits>
#include <tuple>

#include "torch/arguments.h"
#include "torch/parallel.h"

namespace sparsecore::bitmap_from_dense {
namespace {

using namespace binding;

std::tuple<Tensor, Tensor, Tensor, Tensor> bitmap_from_dense(const Tensor& w, ScalarType dtype) {
  check_device(w, "w");
  SPARSECORE_REQUIRE(w.dim() == 2, "w: must be [out_features, in_features], not of ", w.dim(), " dimension(s)");
  const std::optional<Dtype> to = as_dtype(dtype);
  SPARSECORE_REQUIRE(to == Dtype::f32 || to == Dtype::bf16 || to == Dtype::f16 || to == Dtype::i8,
                     "dtype: must be float32, bfloat16, float16 or int8, not ", torch::headeronly::toString(dtype));
  Args args{};
  args.from = float_dtype(w, "w");
  args.to = *to;
  args.n = w.size(0);
  args.k = w.size(1);
  SPARSECORE_REQUIRE(args.k <= std::numeric_limits<int32_t>::max(), "w: in_features must be below 2^31, not ", args.k);
  const Tensor rows = w.stride(1) == 1 || args.k <= 1 ? w : torch::stable::contiguous(w);
  args.w = rows.const_data_ptr();
  args.stride = rows.stride(0);
  const Tensor row_offsets = empty(Dtype::i64, {args.n + 1});
  const Tensor bitmask = empty(aoti_torch_dtype_uint8(), {args.n, 8 * bitmap_words(args.k)});
  args.row_offsets = static_cast<int64_t*>(row_offsets.mutable_data_ptr());
  args.bitmask = static_cast<uint8_t*>(bitmask.mutable_data_ptr());
  args.row_offsets[0] = 0;

  const Kernel& kernel = cpu::choose(kernels());
  note_kernel(kernel.name);
  const auto each = [&](void (*phase)(const Args&, int64_t, int64_t)) {
    for_rows(args.n, args.n * args.k, [&](int64_t begin, int64_t end) { return phase(args, begin, end), int64_t{-1}; });
  };
  each(kernel.bits);
  for (int64_t row = 0; row < args.n; ++row) args.row_offsets[row + 1] += args.row_offsets[row];
  const Tensor values = empty(args.to, {args.row_offsets[args.n]});
  const Tensor scales = empty(Dtype::f32, {args.to == Dtype::i8 ? args.n : 0});
  args.values = values.mutable_data_ptr();
  if (args.to == Dtype::i8) args.scales = static_cast<float*>(scales.mutable_data_ptr());
  each(kernel.pack);
  return {bitmask, row_offsets, values, scales};
}

const bool registered = register_kernels("bitmap_from_dense", kernels());

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def(
      "bitmap_from_dense(Tensor w, ScalarType dtype) -> (Tensor bitmask, Tensor row_offsets, Tensor values, Tensor "
      "scales)");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) { m.impl("bitmap_from_dense", TORCH_BOX(&bitmap_from_dense)); }

}  // namespace sparsecore::bitmap_from_dense
