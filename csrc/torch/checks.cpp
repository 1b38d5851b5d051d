// SPDX-License-Identifier: Apache-2.0
// torch.ops.sparsecore._check_csr, _check_bitmap, _check_nm: every invariant of a format, or an error that names
// the argument that breaks it.
#include <atomic>

#include "torch/bitmap_arguments.h"
#include "torch/csr_arguments.h"
#include "torch/nm_arguments.h"
#include "torch/parallel.h"

namespace sparsecore::binding {
namespace {

// First row (of those met) for which check_row finds a fault, or -1.
template <class CheckRow>
int64_t bad_row(int64_t n, int64_t nnz, const CheckRow& check_row) {
  std::atomic<int64_t> bad{-1};
  const int64_t rows = 256;
  for_pieces((n + rows - 1) / rows, thread_count(nnz + n), [&](int64_t piece, int64_t) {
    for (int64_t row = piece * rows; row < std::min(n, (piece + 1) * rows); ++row)
      if (!check_row(row)) bad.store(row, std::memory_order_relaxed);
  });
  return bad.load();
}

void check_csr(const Tensor& crow_indices, const Tensor& col_indices, const Tensor& values, int64_t k) {
  const CsrView w = csr_pattern(crow_indices, col_indices, k);
  check_count(values, w);
  raise(csr_check_ends(w), w);
  const int64_t bad = bad_row(w.n, w.nnz, [&](int64_t r) { return csr_check_row(w, r).fault == CsrFault::none; });
  if (bad >= 0) raise(csr_check_row(w, bad), w);
}

void check_bitmap(const Tensor& bitmask, const Tensor& row_offsets, const Tensor& values,
                  const std::optional<Tensor>& scales, int64_t k) {
  const BitmapView w = bitmap_view(bitmask, row_offsets, values, scales, k);
  raise(bitmap_check_ends(w), w);
  const int64_t bad = bad_row(w.n, w.nnz, [&](int64_t r) { return bitmap_check_row(w, r).fault == BitmapFault::none; });
  if (bad >= 0) raise(bitmap_check_row(w, bad), w);
}

void check_nm(const Tensor& values, const Tensor& positions, const std::optional<Tensor>& scales, int64_t k) {
  const NmView w = nm_view(values, positions, scales, k);
  const int64_t bad = bad_row(w.n, w.nnz, [&](int64_t r) { return nm_check_row(w, r).fault == NmFault::none; });
  if (bad >= 0) raise(nm_check_row(w, bad), w);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def("_check_csr(Tensor crow_indices, Tensor col_indices, Tensor values, int k) -> ()");
  m.def("_check_bitmap(Tensor bitmask, Tensor row_offsets, Tensor values, Tensor? scales, int k) -> ()");
  m.def("_check_nm(Tensor values, Tensor positions, Tensor? scales, int k) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) {
  m.impl("_check_csr", TORCH_BOX(&check_csr));
  m.impl("_check_bitmap", TORCH_BOX(&check_bitmap));
  m.impl("_check_nm", TORCH_BOX(&check_nm));
}

}  // namespace sparsecore::binding
