// SPDX-License-Identifier: Apache-2.0
#include "ops/bitmap_to_dense/bitmap_to_dense.h"

#include "conversion_op.h"

namespace sparsecore::native {
namespace {

Outcome run(const bitmap_to_dense::Kernel& kernel, const Call& call) {
  const Array& dense = call.array("dense");
  const BitmapView w = bitmap_weight(call);
  if (dense.size() != w.n * w.k || dense.dtype != (w.value == Dtype::i8 ? Dtype::f32 : w.value))
    throw std::invalid_argument("values, scales and dense do not fit together");
  const bitmap_to_dense::Args args{w, dense.data};
  return run_rows(call, w.n, [&](int64_t begin, int64_t end) { return kernel.run(args, begin, end); });
}

Sample sample(Random& random) {
  static constexpr Dtype kValues[] = {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::i8};
  const int64_t n = row_or_column_count(random, 80), k = row_or_column_count(random, 300);
  const Dtype value = kValues[below(random, 4)];
  Sample s;
  const int64_t nnz = sample_bitmap(random, s, n, k);
  void* values = s.add<void>("values", value, {nnz});
  for (int64_t i = 0; i < nnz; ++i)
    if (value == Dtype::i8) static_cast<int8_t*>(values)[i] = static_cast<int8_t>(below(random, 255) - 127);
    else store_f32(values, value, i, static_cast<float>(below(random, 255) - 127));
  if (value == Dtype::i8) {
    float* scales = s.add<float>("scales", Dtype::f32, {n});
    for (int64_t i = 0; i < n; ++i) scales[i] = static_cast<float>(below(random, 100));
  }
  s.add<void>("dense", value == Dtype::i8 ? Dtype::f32 : value, {n, k}, true);
  return s;
}

const bool registered = register_conversion("bitmap_to_dense", bitmap_to_dense::kernels(), run, sample);

}  // namespace
}  // namespace sparsecore::native
