// SPDX-License-Identifier: Apache-2.0
#include "ops/nm_compress/nm_compress.h"

#include <limits>
#include <tuple>

#include "torch/arguments.h"
#include "torch/parallel.h"

namespace sparsecore::nm_compress {
namespace {

using namespace binding;

std::tuple<Tensor, Tensor, Tensor> nm_compress(const Tensor& w, int64_t n, int64_t m, ScalarType dtype,
                                               const std::optional<Tensor>& mask) {
  check_device(w, "w");
  SPARSECORE_REQUIRE(w.dim() == 2, "w: must be [out_features, in_features], not of ", w.dim(), " dimension(s)");
  const std::optional<Dtype> to = as_dtype(dtype);
  SPARSECORE_REQUIRE(to == Dtype::f32 || to == Dtype::bf16 || to == Dtype::f16 || to == Dtype::i8 || to == Dtype::f8,
                     "dtype: must be float32, bfloat16, float16, int8 or float8_e4m3fn, not ",
                     torch::headeronly::toString(dtype));
  Args args{};
  args.from = float_dtype(w, "w");
  args.to = *to;
  args.k = w.size(1);
  const int64_t rows = w.size(0), k = args.k;
  SPARSECORE_REQUIRE(k <= std::numeric_limits<int32_t>::max(), "w: in_features must be below 2^31, not ", k);
  const bool packed = m != 0;
  if (packed)
    SPARSECORE_REQUIRE(nm_is_packed(n, m), "n: ", n, ":", m,
                       " is none of 1:2, 2:4, 4:8, 6:8, 1:4, 2:8, 1:8, 1:16, and of the whole row (m = 0)");
  else SPARSECORE_REQUIRE(n >= 0 && n <= k, "n: must be in [0, in_features = ", k, "], not ", n);
  args.keep = n;
  args.group = packed ? m : k;
  args.index = packed ? Dtype::i8 : nm_index(k);
  const Tensor dense = w.stride(1) == 1 || k <= 1 ? w : torch::stable::contiguous(w);
  args.w = dense.const_data_ptr();
  args.stride = dense.stride(0);
  std::optional<Tensor> chosen = mask;
  if (mask) {
    check_device(*mask, "mask");
    check_dtype(*mask, ScalarType::Bool, "mask");
    SPARSECORE_REQUIRE(mask->dim() == 2 && mask->size(0) == rows && mask->size(1) == k, "mask: must be [", rows, ", ",
                       k, "] as w");
    if (mask->stride(1) != 1 && k > 1) chosen = torch::stable::contiguous(*mask);
    args.mask = static_cast<const uint8_t*>(chosen->const_data_ptr());
    args.mask_stride = chosen->stride(0);
  }
  const NmView view = args.view();
  const Tensor values = empty(args.to, {rows, packed ? nm_words(k) * (kNmColumns / m) : 1, n});
  const Tensor positions =
      packed ? empty(aoti_torch_dtype_uint8(), {rows, view.row_bytes()}) : empty(args.index, {rows, n});
  const bool scaled = args.to == Dtype::i8 || args.to == Dtype::f8;
  const Tensor scales = empty(Dtype::f32, {scaled ? rows : 0});
  args.values = values.mutable_data_ptr();
  args.positions = positions.mutable_data_ptr();
  if (scaled) args.scales = static_cast<float*>(scales.mutable_data_ptr());

  const Kernel& kernel = cpu::choose(kernels());
  note_kernel(kernel.name);
  const int64_t bad =
      for_rows(rows, rows * k, [&](int64_t begin, int64_t end) { return kernel.run(args, begin, end); });
  SPARSECORE_REQUIRE(bad < 0, "mask: row ", bad, " selects more than ", n, " in a group of ", args.group);
  return {values, positions, scales};
}

const bool registered = register_kernels("nm_compress", kernels());

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def(
      "nm_compress(Tensor w, int n, int m, ScalarType dtype, Tensor? mask=None) -> (Tensor values, Tensor positions, "
      "Tensor scales)");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) { m.impl("nm_compress", TORCH_BOX(&nm_compress)); }

}  // namespace sparsecore::nm_compress
