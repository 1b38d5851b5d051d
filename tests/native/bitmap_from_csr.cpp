// SPDX-License-Identifier: Apache-2.0
#include "ops/bitmap_from_csr/bitmap_from_csr.h"

#include "conversion_op.h"

namespace sparsecore::native {
namespace {

Outcome run(const bitmap_from_csr::Kernel& kernel, const Call& call) {
  const Array &crow = call.array("crow_indices"), &col = call.array("col_indices"), &mask = call.array("bitmask");
  const int64_t n = crow.size() - 1, k = call.integer("k");
  if (n < 0 || crow.dtype != col.dtype || mask.size() != n * 8 * bitmap_words(k))
    throw std::invalid_argument("crow_indices, col_indices, bitmask and k do not fit together");
  const bitmap_from_csr::Args args{{n, k, col.size(), crow.data, col.data, nullptr, crow.dtype, Dtype::f32},
                                   mask.as<uint8_t>()};
  return run_rows(call, n, [&](int64_t begin, int64_t end) { return kernel.run(args, begin, end); });
}

template <class Index>
void fill(Index* crow, Index* col, const std::vector<std::vector<int64_t>>& rows) {
  int64_t p = 0;
  *crow++ = 0;
  for (const auto& row : rows) {
    for (int64_t c : row) col[p++] = static_cast<Index>(c);
    *crow++ = static_cast<Index>(p);
  }
}

Sample sample(Random& random) {
  const int64_t n = row_or_column_count(random, 80), k = row_or_column_count(random, 300), keep = below(random, 101);
  std::vector<std::vector<int64_t>> rows(static_cast<size_t>(n));
  int64_t nnz = 0;
  for (auto& row : rows) {
    for (int64_t c = 0; c < k; ++c)
      if (below(random, 100) < keep) row.push_back(c);
    nnz += static_cast<int64_t>(row.size());
  }
  Sample s;
  const Dtype index = random() & 1 ? Dtype::i32 : Dtype::i64;
  void* crow = s.add<void>("crow_indices", index, {n + 1});
  void* col = s.add<void>("col_indices", index, {nnz});
  if (index == Dtype::i32) fill(static_cast<int32_t*>(crow), static_cast<int32_t*>(col), rows);
  else fill(static_cast<int64_t*>(crow), static_cast<int64_t*>(col), rows);
  s.add<void>("bitmask", Dtype::i8, {n, 8 * bitmap_words(k)}, true);
  s.call.integers = {{"k", k}, {"pieces", 1 + below(random, 4)}};
  return s;
}

const bool registered = register_conversion("bitmap_from_csr", bitmap_from_csr::kernels(), run, sample);

}  // namespace
}  // namespace sparsecore::native
