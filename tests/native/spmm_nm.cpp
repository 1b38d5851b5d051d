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
  return s;
}

const bool registered = [] {
  for (const auto& kernel : spmm_nm::kernels())
    variants().push_back({"spmm_nm", kernel.name, kernel.isa,
                          [&kernel](const Call& call) {
                            const NmView w = nm_weight(call);
                            const spmm_nm::Args args{linear(call, w.n), w, {}, nullptr};
                            const int64_t per_row = w.row_values();
                            return run_linear(kernel, args, call, [=](int64_t row) { return row * per_row; }, 64);
                          },
                          sample});
  return true;
}();

}  // namespace
}  // namespace sparsecore::native
