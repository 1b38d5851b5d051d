// SPDX-License-Identifier: Apache-2.0
#include "ops/nm_to_dense/nm_to_dense.h"

#include "conversion_op.h"
#include "nm_op.h"

namespace sparsecore::native {
namespace {

Outcome run(const nm_to_dense::Kernel& kernel, const Call& call) {
  const Array& dense = call.array("dense");
  const NmView w = nm_weight(call);
  if (dense.size() != w.n * w.k || dense.dtype != (w.scales ? Dtype::f32 : w.value))
    throw std::invalid_argument("values, scales and dense do not fit together");
  const nm_to_dense::Args args{w, dense.data};
  return run_rows(call, w.n, [&](int64_t begin, int64_t end) { return kernel.run(args, begin, end); });
}

Sample sample(Random& random) {
  const int64_t n = row_or_column_count(random, 80), k = row_or_column_count(random, 300);
  Sample s;
  sample_nm(random, s, n, k);
  const Dtype value = s.call.array("values").dtype;
  s.add<void>("dense", value == Dtype::i8 || value == Dtype::f8 ? Dtype::f32 : value, {n, k}, true);
  s.call.integers = {{"k", k}, {"pieces", 1 + below(random, 4)}};
  return s;
}

const bool registered = register_conversion("nm_to_dense", nm_to_dense::kernels(), run, sample);

}  // namespace
}  // namespace sparsecore::native
