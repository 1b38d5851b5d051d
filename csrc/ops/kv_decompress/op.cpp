// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_decompress/kv_decompress.h"

#include "torch/kv_arguments.h"
#include "torch/parallel.h"

namespace sparsecore::kv_decompress {
namespace {

using namespace binding;

Tensor kv_decompress(const Tensor& bitmask, const Tensor& values, int64_t head_dim) {
  Args args{};
  Tensor dense;
  const int64_t rows = kv_decompressed(args, bitmask, values, head_dim, dense);
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
