// SPDX-License-Identifier: Apache-2.0
#include "ops/bitmap_to_csr/bitmap_to_csr.h"

#include "torch/arguments.h"
#include "torch/bitmap_arguments.h"
#include "torch/parallel.h"

namespace sparsecore::bitmap_to_csr {
namespace {

using namespace binding;

Tensor bitmap_to_csr(const Tensor& bitmask, const Tensor& row_offsets, int64_t k, bool int64) {
  Args args{bitmap_pattern(bitmask, row_offsets, k), nullptr, int64 ? Dtype::i64 : Dtype::i32};
  args.pattern.nnz = args.pattern.row_offsets[args.pattern.n];
  const BitmapView& w = args.pattern;
  raise(bitmap_check_ends(w), w);
  // Before nnz becomes a size: n * k < 2^63, as the bitmask is in memory.
  SPARSECORE_REQUIRE(w.nnz >= 0 && w.nnz <= w.n * k, "row_offsets: entry ", w.n, " is ", w.nnz, ", outside [0, ", w.n,
                     " * ", k, "]");
  const Tensor col_indices = empty(args.index, {w.nnz});
  args.col = col_indices.mutable_data_ptr();
  const Kernel& kernel = cpu::choose(kernels());
  note_kernel(kernel.name);
  const int64_t bad =
      for_rows(w.n, w.n * k / 4 + w.nnz, [&](int64_t begin, int64_t end) { return kernel.run(args, begin, end); });
  if (bad >= 0) raise(bitmap_check_row(w, bad), w);
  return col_indices;
}

const bool registered = register_kernels("bitmap_to_csr", kernels());

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def("bitmap_to_csr(Tensor bitmask, Tensor row_offsets, int k, bool int64) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) { m.impl("bitmap_to_csr", TORCH_BOX(&bitmap_to_csr)); }

}  // namespace sparsecore::bitmap_to_csr
