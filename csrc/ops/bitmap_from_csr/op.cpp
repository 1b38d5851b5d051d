// SPDX-License-Identifier: Apache-2.0
#include "ops/bitmap_from_csr/bitmap_from_csr.h"

#include "torch/arguments.h"
#include "torch/csr_arguments.h"
#include "torch/parallel.h"

namespace sparsecore::bitmap_from_csr {
namespace {

using namespace binding;

Tensor bitmap_from_csr(const Tensor& crow_indices, const Tensor& col_indices, int64_t k) {
  Args args{csr_pattern(crow_indices, col_indices, k), nullptr};
  const CsrView& w = args.pattern;
  raise(csr_check_ends(w), w);
  const Tensor bitmask = empty(aoti_torch_dtype_uint8(), {w.n, 8 * bitmap_words(k)});
  args.bitmask = static_cast<uint8_t*>(bitmask.mutable_data_ptr());
  const Kernel& kernel = cpu::choose(kernels());
  note_kernel(kernel.name);
  const int64_t work = w.n * bitmap_words(k) + 4 * w.nnz;
  const int64_t bad = for_rows(w.n, work, [&](int64_t begin, int64_t end) { return kernel.run(args, begin, end); });
  if (bad >= 0) raise(csr_check_row(w, bad), w);
  return bitmask;
}

const bool registered = register_kernels("bitmap_from_csr", kernels());

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def("bitmap_from_csr(Tensor crow_indices, Tensor col_indices, int k) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) { m.impl("bitmap_from_csr", TORCH_BOX(&bitmap_from_csr)); }

}  // namespace sparsecore::bitmap_from_csr
