// SPDX-License-Identifier: Apache-2.0
#include "ops/bitmap_from_dense/bitmap_from_dense.h"

#include "conversion_op.h"

namespace sparsecore::native {
namespace {

using bitmap_from_dense::Args;

// w [n, stride]; bitmask, row_offsets, values and, for int8, scales are outputs.
Outcome run(const bitmap_from_dense::Kernel& kernel, const Call& call) {
  const Array &w = call.array("w"), &mask = call.array("bitmask"), &offsets = call.array("row_offsets"),
              &values = call.array("values");
  const int64_t n = offsets.size() - 1, k = call.integer("k");
  const Array* scales = call.find("scales");
  const bool scaled = values.dtype == Dtype::i8;
  if (w.shape.size() != 2 || w.shape[0] != n || w.shape[1] < k || mask.size() != n * 8 * bitmap_words(k) ||
      (scaled && (!scales || scales->size() != n)))
    throw std::invalid_argument("w, bitmask, row_offsets, scales and k do not fit together");
  const Args args{n,
                  k,
                  w.data,
                  w.shape[1],
                  mask.as<uint8_t>(),
                  offsets.as<int64_t>(),
                  values.data,
                  scaled ? scales->as<float>() : nullptr,
                  w.dtype,
                  values.dtype};
  const auto each = [&](auto phase) {
    return run_rows(call, n, [&](int64_t begin, int64_t end) { return phase(args, begin, end), int64_t{-1}; });
  };
  each(kernel.bits);
  args.row_offsets[0] = 0;
  for (int64_t row = 0; row < n; ++row) args.row_offsets[row + 1] += args.row_offsets[row];
  if (args.row_offsets[n] != values.size()) throw std::length_error("counted other than values holds");
  return each(kernel.pack);
}

Sample sample(Random& random) {
  static constexpr Dtype kValues[] = {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::i8};
  const int64_t n = row_or_column_count(random, 80), k = row_or_column_count(random, 300),
                stride = k + below(random, 3);
  const int64_t keep = below(random, 101);
  const Dtype from = kValues[below(random, 3)], to = kValues[below(random, 4)];
  Sample s;
  void* w = s.add<void>("w", from, {n, stride});
  int64_t nnz = 0;
  for (int64_t i = 0; i < n * stride; ++i) {
    const bool stored = below(random, 100) < keep;
    store_f32(w, from, i,
              !stored ? 0.0f : static_cast<float>(1 + below(random, 1000)) / (random() & 1 ? 16.0f : -16.0f));
    nnz += stored && i % stride < k;
  }
  s.add<void>("bitmask", Dtype::i8, {n, 8 * bitmap_words(k)}, true);
  s.add<void>("row_offsets", Dtype::i64, {n + 1}, true);
  s.add<void>("values", to, {nnz}, true);
  s.add<void>("scales", Dtype::f32, {to == Dtype::i8 ? n : 0}, true);
  s.call.integers = {{"k", k}, {"pieces", 1 + below(random, 4)}};
  return s;
}

const bool registered = register_conversion("bitmap_from_dense", bitmap_from_dense::kernels(), run, sample);

}  // namespace
}  // namespace sparsecore::native
