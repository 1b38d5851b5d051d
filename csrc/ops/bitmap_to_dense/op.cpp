// SPDX-License-Identifier: Apache-2.0
#include "ops/bitmap_to_dense/bitmap_to_dense.h"

#include "torch/arguments.h"
#include "torch/bitmap_arguments.h"
#include "torch/parallel.h"

namespace sparsecore::bitmap_to_dense {
namespace {

using namespace binding;

Tensor bitmap_to_dense(const Tensor& bitmask, const Tensor& row_offsets, const Tensor& values,
                       const std::optional<Tensor>& scales, int64_t k) {
  Args args{bitmap_view(bitmask, row_offsets, values, scales, k), nullptr};
  const BitmapView& w = args.weight;
  raise(bitmap_check_ends(w), w);
  const Tensor dense = empty(w.value == Dtype::i8 ? Dtype::f32 : w.value, {w.n, k});
  args.dense = dense.mutable_data_ptr();
  const Kernel& kernel = cpu::choose(kernels());
  note_kernel(kernel.name);
  const int64_t bad = for_rows(w.n, w.n * k, [&](int64_t begin, int64_t end) { return kernel.run(args, begin, end); });
  if (bad >= 0) raise(bitmap_check_row(w, bad), w);
  return dense;
}

const bool registered = register_kernels("bitmap_to_dense", kernels());

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def("bitmap_to_dense(Tensor bitmask, Tensor row_offsets, Tensor values, Tensor? scales, int k) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) { m.impl("bitmap_to_dense", TORCH_BOX(&bitmap_to_dense)); }

}  // namespace sparsecore::bitmap_to_dense
