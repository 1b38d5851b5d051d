// SPDX-License-Identifier: Apache-2.0
#include "ops/spmm_bitmap/spmm_bitmap.h"

#include "conversion_op.h"
#include "linear_op.h"

namespace sparsecore::native {
namespace {

Sample sample(Random& random) {
  const int64_t n = sample_size(random, 80), k = sample_size(random, 300), keep = below(random, 101),
                words = bitmap_words(k);
  std::vector<unsigned char> bits(static_cast<size_t>(n * 8 * words), 0);
  std::vector<int64_t> offsets(static_cast<size_t>(n) + 1, 0);
  for (int64_t row = 0; row < n; ++row) {
    const int64_t here = below(random, 4) == 0 ? below(random, 101) : keep;
    offsets[row + 1] = offsets[row];
    for (int64_t c = 0; c < k; ++c)
      if (below(random, 100) < here) {
        bits[row * 8 * words + c / 8] |= static_cast<unsigned char>(1 << c % 8);
        ++offsets[row + 1];
      }
  }
  static constexpr Dtype kValues[] = {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::i8};
  const Dtype value = kValues[below(random, 4)];
  const int64_t nnz = offsets.back();
  Sample s;
  std::copy(bits.begin(), bits.end(), s.add<unsigned char>("bitmask", Dtype::i8, {n, 8 * words}));
  std::copy(offsets.begin(), offsets.end(), s.add<int64_t>("row_offsets", Dtype::i64, {n + 1}));
  fill_small(random, s.add<void>("values", value, {nnz}), value, nnz);
  if (value == Dtype::i8) fill_small(random, s.add<void>("scales", Dtype::f32, {n}), Dtype::f32, n);
  sample_linear(random, s, n, k);
  return s;
}

const bool registered = [] {
  for (const auto& kernel : spmm_bitmap::kernels())
    variants().push_back({"spmm_bitmap", kernel.name, kernel.isa,
                          [&kernel](const Call& call) {
                            const BitmapView w = bitmap_weight(call);
                            const spmm_bitmap::Args args{linear(call, w.n), w, {}, nullptr};
                            return run_linear(kernel, args, call, [&w](int64_t row) { return w.row_offsets[row]; }, 64);
                          },
                          sample});
  return true;
}();

}  // namespace
}  // namespace sparsecore::native
