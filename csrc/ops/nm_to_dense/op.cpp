// SPDX-License-Identifier: Apache-2.0
#include "ops/nm_to_dense/nm_to_dense.h"

#include "torch/arguments.h"
#include "torch/nm_arguments.h"
#include "torch/parallel.h"

namespace sparsecore::nm_to_dense {
namespace {

using namespace binding;

Tensor nm_to_dense(const Tensor& values, const Tensor& positions, const std::optional<Tensor>& scales, int64_t k) {
  Args args{nm_view(values, positions, scales, k), nullptr};
  const NmView& w = args.weight;
  const Tensor dense = empty(scaled(w.value) ? Dtype::f32 : w.value, {w.n, k});
  args.dense = dense.mutable_data_ptr();
  const Kernel& kernel = cpu::choose(kernels());
  note_kernel(kernel.name);
  const int64_t bad = for_rows(w.n, w.n * k, [&](int64_t begin, int64_t end) { return kernel.run(args, begin, end); });
  if (bad >= 0) raise(nm_check_row(w, bad), w);
  return dense;
}

const bool registered = register_kernels("nm_to_dense", kernels());

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def("nm_to_dense(Tensor values, Tensor positions, Tensor? scales, int k) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) { m.impl("nm_to_dense", TORCH_BOX(&nm_to_dense)); }

}  // namespace sparsecore::nm_to_dense
