// SPDX-License-Identifier: Apache-2.0
#include "ops/spmm_csr/spmm_csr.h"

#include "linear_op.h"

namespace sparsecore::native {
namespace {

CsrView view(const Call& call) {
  const Array &crow = call.array("crow_indices"), &col = call.array("col_indices"), &values = call.array("values");
  if (crow.dtype != col.dtype || crow.size() < 1 || col.size() != values.size())
    throw std::invalid_argument("crow_indices, col_indices and values do not fit together");
  return {crow.size() - 1, call.integer("k"), col.size(), crow.data, col.data, values.data, crow.dtype, values.dtype};
}

template <class Index>
void fill_indices(Index* crow, Index* col, const std::vector<std::vector<int64_t>>& rows) {
  int64_t p = 0;
  *crow++ = 0;
  for (const auto& row : rows) {
    for (int64_t c : row) col[p++] = static_cast<Index>(c);
    *crow++ = static_cast<Index>(p);
  }
}

Sample sample(Random& random) {
  const int64_t n = sample_size(random, 80), k = sample_size(random, 300), keep = below(random, 101);
  std::vector<std::vector<int64_t>> rows(static_cast<size_t>(n));
  int64_t nnz = 0;
  for (auto& row : rows) {
    const int64_t here = below(random, 4) == 0 ? below(random, 101) : keep;
    for (int64_t c = 0; c < k; ++c)
      if (below(random, 100) < here) row.push_back(c);
    nnz += static_cast<int64_t>(row.size());
  }
  Sample s;
  const Dtype index = random() & 1 ? Dtype::i32 : Dtype::i64, value = float_dtypes()[below(random, 3)];
  void* crow = s.add<void>("crow_indices", index, {n + 1});
  void* col = s.add<void>("col_indices", index, {nnz});
  if (index == Dtype::i32) fill_indices(static_cast<int32_t*>(crow), static_cast<int32_t*>(col), rows);
  else fill_indices(static_cast<int64_t*>(crow), static_cast<int64_t*>(col), rows);
  fill_small(random, s.add<void>("values", value, {nnz}), value, nnz);
  sample_linear(random, s, n, k);
  return s;
}

const bool registered = [] {
  for (const auto& kernel : spmm_csr::kernels())
    variants().push_back({"spmm_csr", kernel.name, kernel.isa,
                          [&kernel](const Call& call) {
                            const CsrView w = view(call);
                            const spmm_csr::Args args{linear(call, w.n), w, {}, nullptr};
                            return run_linear(kernel, args, call, [&w](int64_t row) { return w.offset(row); });
                          },
                          sample});
  return true;
}();

}  // namespace
}  // namespace sparsecore::native
