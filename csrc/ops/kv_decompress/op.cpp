// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_decompress/kv_decompress.h"

#include "torch/arguments.h"
#include "torch/parallel.h"

namespace sparsecore::kv_decompress {
namespace {

using namespace binding;

Tensor kv_decompress(const Tensor& bitmask, const Tensor& values, int64_t head_dim) {
  SPARSECORE_REQUIRE(values.dim() >= 1, "values: must have at least one dimension, [..., keep]");
  const int64_t dims = values.dim();
  check_array(bitmask, dims, "bitmask");
  check_array(values, dims, "values");
  check_dtype(bitmask, ScalarType::Byte, "bitmask");
  SPARSECORE_REQUIRE(kv_is_head_dim(head_dim), "head_dim: must be in [32, 256] and a multiple of 8, not ", head_dim);
  Args args{};
  args.value = float_dtype(values, "values");
  args.head_dim = head_dim;
  args.keep = values.size(dims - 1);
  SPARSECORE_REQUIRE(args.keep <= head_dim, "values: must keep at most head_dim = ", head_dim, " channels, not ",
                     args.keep);
  SPARSECORE_REQUIRE(bitmask.size(dims - 1) == 4 * kv_words(head_dim), "bitmask: must have ", 4 * kv_words(head_dim),
                     " bytes a token for head_dim = ", head_dim, ", not ", bitmask.size(dims - 1));
  std::vector<int64_t> sizes(values.sizes().begin(), values.sizes().end());
  sizes.back() = head_dim;
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < dims; ++i) {
    SPARSECORE_REQUIRE(bitmask.size(i) == sizes[i], "bitmask: dimension ", i, " must be ", sizes[i],
                       " as that of values, not ", bitmask.size(i));
    rows *= sizes[i];
  }
  const Tensor dense = empty_like_dtype(values, sizes);
  args.bitmask = static_cast<const uint8_t*>(bitmask.const_data_ptr());
  args.values = values.const_data_ptr();
  args.dense = dense.mutable_data_ptr();
  const Kernel& kernel = cpu::choose(kernels());
  note_kernel(kernel.name);
  const int64_t bad =
      for_rows(rows, rows * head_dim, [&](int64_t begin, int64_t end) { return kernel.run(args, begin, end); });
  if (bad >= 0) {
    const int64_t population = kv_population(args.bitmask + bad * 4 * kv_words(head_dim), head_dim);
    SPARSECORE_REQUIRE(population <= head_dim, "bitmask: row ", bad,
                       " has bits of channels past head_dim = ", head_dim);
    SPARSECORE_REQUIRE(false, "bitmask: row ", bad, " has ", population, " bits set, not ", args.keep,
                       " as values has channels");
  }
  return dense;
}

const bool registered = register_kernels("kv_decompress", kernels());

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def("kv_decompress(Tensor bitmask, Tensor values, int head_dim) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) { m.impl("kv_decompress", TORCH_BOX(&kv_decompress)); }

}  // namespace sparsecore::kv_decompress
