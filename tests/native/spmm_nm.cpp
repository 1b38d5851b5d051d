// SPDX-License-Identifier: Apache-2.0
#include "ops/spmm_nm/spmm_nm.h"

#include "linear_op.h"
#include "nm_op.h"

namespace sparsecore::native {
namespace {

Sample sample(Random& random) {
  const int64_t n = sample_size(random, 80), k = sample_size(random, 300);
  Sample s;
  sample_nm(random, s, n, k);
  sample_linear(random, s, n, k);
  s.call.integers["activation"] = random() & 1 ? below(random, 5) : 0;
  const Array y = s.call.array("y");
  if (random() % 4 == 0)
    fill_small(random, s.add<void>("residual", y.dtype, {y.shape[0], y.shape[1]}), y.dtype, y.shape[0] * y.shape[1]);
  return s;
}

const bool registered = [] {
  for (const auto& kernel : spmm_nm::kernels())
    variants().push_back({"spmm_nm", kernel.name, kernel.isa,
                          [&kernel](const Call& call) {
                            const NmView w = nm_weight(call);
                            const spmm_nm::Args args{nm_linear(call, w.n), w, {}, nullptr};
                            const int64_t per_row = w.row_values();
                            return run_linear(kernel, args, call, [=](int64_t row) { return row * per_row; }, 64);
                          },
                          sample});
  return true;
}();

}  // namespace
}  // namespace sparsecore::native
