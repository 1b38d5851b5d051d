// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_compress/kv_compress.h"

#include <tuple>

#include "torch/kv_arguments.h"
#include "torch/parallel.h"

namespace sparsecore::kv_compress {
namespace {

using namespace binding;

std::tuple<Tensor, Tensor> kv_compress(const Tensor& x, int64_t keep, const std::optional<Tensor>& weight) {
  Args args{};
  const KvCompressed out = kv_compressed(args, x, keep, weight);
  const Kernel& kernel = cpu::choose(kernels());
  note_kernel(kernel.name);
  for_rows(out.x.m, out.x.m * args.head_dim * 4, [&](int64_t begin, int64_t end) -> int64_t {
    kernel.run(args, begin, end);
    return -1;
  });
  return {out.bitmask, out.values};
}

const bool registered = register_kernels("kv_compress", kernels());

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def("kv_compress(Tensor x, int keep, Tensor? weight=None) -> (Tensor bitmask, Tensor values)");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) { m.impl("kv_compress", TORCH_BOX(&kv_compress)); }

}  // namespace sparsecore::kv_compress
