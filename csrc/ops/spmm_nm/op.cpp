// SPDX-License-Identifier: Apache-2.0
#include "ops/spmm_nm/spmm_nm.h"

#include <string>

#include "torch/arguments.h"
#include "torch/nm_arguments.h"
#include "torch/parallel.h"

namespace sparsecore::spmm_nm {
namespace {

using namespace binding;

Tensor forward(const Tensor& x, const Tensor& values, const Tensor& positions, const std::optional<Tensor>& scales,
               const std::optional<Tensor>& bias, const std::optional<Tensor>& out,
               const std::optional<Tensor>& residual = std::nullopt, int64_t activation = 0) {
  Args args{};
  const NmProduct made =
      nm_product(args.dense, args.weight, x, values, positions, scales, bias, out, residual, activation);
  const int64_t per_row = args.weight.row_values();
  const int64_t bad = run_linear(cpu::choose(kernels()), args, [per_row](int64_t row) { return row * per_row; });
  if (bad >= 0) raise(nm_check_row(args.weight, bad), args.weight);
  return made.y;
}

Tensor spmm_nm(const Tensor& x, const Tensor& values, const Tensor& positions, const std::optional<Tensor>& scales,
               const std::optional<Tensor>& bias) {
  return forward(x, values, positions, scales, bias, std::nullopt);
}

void spmm_nm_out(const Tensor& x, const Tensor& values, const Tensor& positions, const std::optional<Tensor>& scales,
                 const std::optional<Tensor>& bias, const Tensor& out) {
  forward(x, values, positions, scales, bias, out);
}

Tensor spmm_nm_fused(const Tensor& x, const Tensor& values, const Tensor& positions,
                     const std::optional<Tensor>& scales, const std::optional<Tensor>& bias,
                     const std::optional<Tensor>& residual, int64_t activation) {
  return forward(x, values, positions, scales, bias, std::nullopt, residual, activation);
}

const bool registered = register_kernels("spmm_nm", kernels());

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def("spmm_nm(Tensor x, Tensor values, Tensor positions, Tensor? scales=None, Tensor? bias=None) -> Tensor");
  // Without an autograd formula: a call that needs no gradient skips its trip through Python.
  m.def("_spmm_nm(Tensor x, Tensor values, Tensor positions, Tensor? scales=None, Tensor? bias=None) -> Tensor");
  m.def(
      "spmm_nm.out(Tensor x, Tensor values, Tensor positions, Tensor? scales=None, Tensor? bias=None, *, Tensor(a!) "
      "out) -> ()");
  for (const char* name : {"spmm_nm_fused", "_spmm_nm_fused"})
    m.def((std::string(name) +
           "(Tensor x, Tensor values, Tensor positions, Tensor? scales=None, Tensor? bias=None, Tensor? residual=None, "
           "int activation=0) -> Tensor")
              .c_str());
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) {
  m.impl("spmm_nm", TORCH_BOX(&spmm_nm));
  m.impl("_spmm_nm", TORCH_BOX(&spmm_nm));
  m.impl("spmm_nm.out", TORCH_BOX(&spmm_nm_out));
  m.impl("spmm_nm_fused", TORCH_BOX(&spmm_nm_fused));
  m.impl("_spmm_nm_fused", TORCH_BOX(&spmm_nm_fused));
}

}  // namespace sparsecore::spmm_nm
