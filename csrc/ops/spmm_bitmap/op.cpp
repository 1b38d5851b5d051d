// SPDX-License-Identifier: Apache-2.0
#include "ops/spmm_bitmap/spmm_bitmap.h"

#include "torch/arguments.h"
#include "torch/bitmap_arguments.h"
#include "torch/parallel.h"

namespace sparsecore::spmm_bitmap {
namespace {

using namespace binding;

Tensor forward(const Tensor& x, const Tensor& bitmask, const Tensor& row_offsets, const Tensor& values,
               const std::optional<Tensor>& scales, const std::optional<Tensor>& bias,
               const std::optional<Tensor>& out) {
  const DenseInput in = dense_input(x);
  Args args{};
  args.dense = {in.m, 0, in.k, in.x.const_data_ptr(), in.stride, nullptr, nullptr, 0, float_dtype(x, "x")};
  args.weight = bitmap_view(bitmask, row_offsets, values, scales, in.k);
  const int64_t n = args.weight.n;
  args.dense.n = n;
  args.dense.bias = bias_pointer(bias, x, n);
  Tensor y = linear_output(x, n, out);
  if (out) check_disjoint_weight(y, bitmask, row_offsets, values, scales, bias);
  args.dense.y = y.mutable_data_ptr();
  args.dense.y_stride = n;
  raise(bitmap_check_ends(args.weight), args.weight);
  const int64_t bad =
      run_linear(cpu::choose(kernels()), args, [&](int64_t row) { return args.weight.row_offsets[row]; });
  if (bad >= 0) raise(bitmap_check_row(args.weight, bad), args.weight);
  return y;
}

Tensor spmm_bitmap(const Tensor& x, const Tensor& bitmask, const Tensor& row_offsets, const Tensor& values,
                   const std::optional<Tensor>& scales, const std::optional<Tensor>& bias) {
  return forward(x, bitmask, row_offsets, values, scales, bias, std::nullopt);
}

void spmm_bitmap_out(const Tensor& x, const Tensor& bitmask, const Tensor& row_offsets, const Tensor& values,
                     const std::optional<Tensor>& scales, const std::optional<Tensor>& bias, const Tensor& out) {
  forward(x, bitmask, row_offsets, values, scales, bias, out);
}

const bool registered = register_kernels("spmm_bitmap", kernels());

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def(
      "spmm_bitmap(Tensor x, Tensor bitmask, Tensor row_offsets, Tensor values, Tensor? scales=None, Tensor? "
      "bias=None) -> Tensor");
  // Without an autograd formula: a call that needs no gradient skips its trip through Python.
  m.def(
      "_spmm_bitmap(Tensor x, Tensor bitmask, Tensor row_offsets, Tensor values, Tensor? scales=None, Tensor? "
      "bias=None) "
      "-> Tensor");
  m.def(
      "spmm_bitmap.out(Tensor x, Tensor bitmask, Tensor row_offsets, Tensor values, Tensor? scales=None, Tensor? "
      "bias=None, *, "
      "Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) {
  m.impl("spmm_bitmap", TORCH_BOX(&spmm_bitmap));
  m.impl("_spmm_bitmap", TORCH_BOX(&spmm_bitmap));
  m.impl("spmm_bitmap.out", TORCH_BOX(&spmm_bitmap_out));
}

}  // namespace sparsecore::spmm_bitmap
