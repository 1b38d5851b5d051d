// SPDX-License-Identifier: Apache-2.0
#include "ops/bitmap_to_csr/bitmap_to_csr.h"

#include "conversion_op.h"

namespace sparsecore::native {
namespace {

Outcome run(const bitmap_to_csr::Kernel& kernel, const Call& call) {
  const Array& col = call.array("col_indices");
  const bitmap_to_csr::Args args{bitmap_pattern(call, col.size()), col.data, col.dtype};
  return run_rows(call, args.pattern.n, [&](int64_t begin, int64_t end) { return kernel.run(args, begin, end); });
}

Sample sample(Random& random) {
  Sample s;
  const int64_t n = row_or_column_count(random, 80), k = row_or_column_count(random, 300);
  const int64_t nnz = sample_bitmap(random, s, n, k);
  s.add<void>("col_indices", random() & 1 ? Dtype::i32 : Dtype::i64, {nnz}, true);
  return s;
}

const bool registered = register_conversion("bitmap_to_csr", bitmap_to_csr::kernels(), run, sample);

}  // namespace
}  // namespace sparsecore::native
