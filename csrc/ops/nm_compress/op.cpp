// SPDX-License-Identifier: Apache-2.0
#include "ops/nm_compress/nm_compress.h"

#include <tuple>

#include "torch/nm_arguments.h"
#include "torch/parallel.h"

namespace sparsecore::nm_compress {
namespace {

using namespace binding;

std::tuple<Tensor, Tensor, Tensor> nm_compress(const Tensor& w, int64_t n, int64_t m, ScalarType dtype,
                                               const std::optional<Tensor>& mask) {
  Args args{};
  const NmCompressed c = nm_compressed(args, w, n, m, dtype, mask);
  const int64_t rows = w.size(0);
  const Kernel& kernel = cpu::choose(kernels());
  note_kernel(kernel.name);
  const int64_t bad =
      for_rows(rows, rows * args.k, [&](int64_t begin, int64_t end) { return kernel.run(args, begin, end); });
  SPARSECORE_REQUIRE(bad < 0, "mask: row ", bad, " selects more than ", n, " in a group of ", args.group);
  return {c.values, c.positions, c.scales};
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
