// SPDX-License-Identifier: Apache-2.0
#include "ops/spmm_csr/spmm_csr.h"

#include "torch/arguments.h"
#include "torch/csr_arguments.h"
#include "torch/parallel.h"

namespace sparsecore::spmm_csr {
namespace {

using namespace binding;

Tensor forward(const Tensor& x, const Tensor& crow_indices, const Tensor& col_indices, const Tensor& values,
               const std::optional<Tensor>& bias, const std::optional<Tensor>& out) {
  const DenseInput in = dense_input(x);
  Args args{};
  args.dense = {in.m, 0, in.k, in.x.const_data_ptr(), in.stride, nullptr, nullptr, 0, float_dtype(x, "x")};
  args.weight = csr_view(crow_indices, col_indices, values, in.k);
  const int64_t n = args.weight.n;
  args.dense.n = n;
  args.dense.bias = bias_pointer(bias, x, n);
  Tensor y = linear_output(x, n, out);
  if (out) {
    check_disjoint(y, crow_indices, "crow_indices");
    check_disjoint(y, col_indices, "col_indices");
    check_disjoint(y, values, "values");
    if (bias) check_disjoint(y, *bias, "bias");
  }
  args.dense.y = y.mutable_data_ptr();
  args.dense.y_stride = n;
  raise(csr_check_ends(args.weight), args.weight);
  const int64_t bad = run_linear(cpu::choose(kernels()), args, [&](int64_t row) { return args.weight.offset(row); });
  if (bad >= 0) raise(csr_check_row(args.weight, bad), args.weight);
  return y;
}

Tensor spmm_csr(const Tensor& x, const Tensor& crow_indices, const Tensor& col_indices, const Tensor& values,
                const std::optional<Tensor>& bias) {
  return forward(x, crow_indices, col_indices, values, bias, std::nullopt);
}

void spmm_csr_out(const Tensor& x, const Tensor& crow_indices, const Tensor& col_indices, const Tensor& values,
                  const std::optional<Tensor>& bias, const Tensor& out) {
  forward(x, crow_indices, col_indices, values, bias, out);
}

const bool registered = register_kernels("spmm_csr", kernels());

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def("spmm_csr(Tensor x, Tensor crow_indices, Tensor col_indices, Tensor values, Tensor? bias=None) -> Tensor");
  // Without an autograd formula: a call that needs no gradient skips its trip through Python.
  m.def(
      "_spmm_csr(Tensor x, Tensor crow_indices, Tensor col_indices, Tensor values, Tensor? bias=None) "
      "-> Tensor");
  m.def(
      "spmm_csr.out(Tensor x, Tensor crow_indices, Tensor col_indices, Tensor values, Tensor? bias=None, *, "
      "Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) {
  m.impl("spmm_csr", TORCH_BOX(&spmm_csr));
  m.impl("_spmm_csr", TORCH_BOX(&spmm_csr));
  m.impl("spmm_csr.out", TORCH_BOX(&spmm_csr_out));
}

}  // namespace sparsecore::spmm_csr
