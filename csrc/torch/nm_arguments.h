// SPDX-License-Identifier: Apache-2.0
// N:M tensors to an NmView, and findings to errors.
#pragma once
#include <limits>

#include "core/nm.h"
#include "torch/arguments.h"

namespace sparsecore::binding {

inline bool scaled(Dtype value) { return value == Dtype::i8 || value == Dtype::f8; }

inline NmView nm_view(const Tensor& values, const Tensor& positions, const std::optional<Tensor>& scales, int64_t k) {
  check_array(values, 3, "values");
  check_array(positions, 2, "positions");
  SPARSECORE_REQUIRE(k >= 0 && k <= std::numeric_limits<int32_t>::max(), "k: in_features must be in [0, 2^31), not ",
                     k);
  NmView w{};
  w.n = values.size(0);
  w.k = k;
  w.nnz = values.numel();
  w.keep = values.size(2);
  w.values = values.const_data_ptr();
  w.positions = positions.const_data_ptr();
  const std::optional<Dtype> value = as_dtype(values.scalar_type());
  SPARSECORE_REQUIRE(value == Dtype::f32 || value == Dtype::bf16 || value == Dtype::f16 || (value && scaled(*value)),
                     "values: dtype must be float32, bfloat16, float16, int8 or float8_e4m3fn, not ",
                     torch::headeronly::toString(values.scalar_type()));
  w.value = *value;
  SPARSECORE_REQUIRE(positions.size(0) == w.n, "positions: must have out_features = ", w.n, " rows as values, not ",
                     positions.size(0));
  const int64_t groups = values.size(1), padded = kNmColumns * nm_words(k);
  if (positions.scalar_type() == ScalarType::Byte) {
    w.index = Dtype::i8;
    w.group = nm_group_size(groups, w.keep, k);
    SPARSECORE_REQUIRE(w.group != 0, "values: ", groups, " groups of ", w.keep, " for ", padded,
                       " padded columns are none of 1:2, 2:4, 4:8, 6:8, 1:4, 2:8, 1:8, 1:16");
    SPARSECORE_REQUIRE(positions.size(1) == w.row_bytes(), "positions: must have ", w.row_bytes(), " bytes a row for ",
                       w.keep, ":", w.group, ", not ", positions.size(1));
  } else {
    w.index = nm_index(k);
    w.group = k;
    SPARSECORE_REQUIRE(as_dtype(positions.scalar_type()) == w.index,
                       "positions: dtype must be uint8, or of a constant fan-in of ", k, " columns ",
                       dtype_name(w.index), ", not ", torch::headeronly::toString(positions.scalar_type()));
    SPARSECORE_REQUIRE(groups == 1 && w.keep <= k, "values: a constant fan-in has [rows, 1, at most in_features = ", k,
                       "], not [", w.n, ", ", groups, ", ", w.keep, "]");
    SPARSECORE_REQUIRE(positions.size(1) == w.keep, "positions: must have ", w.keep, " columns a row as values, not ",
                       positions.size(1));
  }
  SPARSECORE_REQUIRE(!scaled(w.value) || scales, "scales: values of 8 bits need one float32 scale a row");
  if (scales) {
    SPARSECORE_REQUIRE(scaled(w.value), "values: dtype must be int8 or float8_e4m3fn beside scales, not ",
                       dtype_name(w.value));
    check_array(*scales, 1, "scales");
    check_dtype(*scales, ScalarType::Float, "scales");
    SPARSECORE_REQUIRE(scales->numel() == w.n, "scales: must have out_features = ", w.n, " elements, not ",
                       scales->numel());
    w.scales = static_cast<const float*>(scales->const_data_ptr());
  }
  return w;
}

// `out` shares no memory with the rest of a weight op's arguments.
inline void check_disjoint_nm(const Tensor& out, const Tensor& values, const Tensor& positions,
                              const std::optional<Tensor>& scales, const std::optional<Tensor>& bias) {
  check_disjoint(out, values, "values");
  check_disjoint(out, positions, "positions");
  if (scales) check_disjoint(out, *scales, "scales");
  if (bias) check_disjoint(out, *bias, "bias");
}

// The tensors of a call of spmm_nm: x and the residual with adjacent columns, y.
struct NmProduct {
  DenseInput x;
  std::optional<DenseInput> residual;
  Tensor y;
};

// Checks the arguments, makes y unless it is `out`, and fills `dense` and `weight`.
inline NmProduct nm_product(Linear& dense, NmView& weight, const Tensor& x, const Tensor& values,
                            const Tensor& positions, const std::optional<Tensor>& scales,
                            const std::optional<Tensor>& bias, const std::optional<Tensor>& out,
                            const std::optional<Tensor>& residual, int64_t activation) {
  NmProduct made{dense_input(x), std::nullopt, Tensor()};
  weight = nm_view(values, positions, scales, made.x.k);
  dense = {made.x.m, weight.n, made.x.k, made.x.x.const_data_ptr(), made.x.stride,
           nullptr,  nullptr,  weight.n, float_dtype(x, "x")};
  dense.bias = bias_pointer(bias, x, weight.n);
  made.y = linear_output(x, weight.n, out);
  const Tensor& y = made.y;
  SPARSECORE_REQUIRE(0 <= activation && activation <= static_cast<int64_t>(Activation::silu),
                     "activation: must be 0 to 4 (none, relu, gelu, gelu_tanh, silu), not ", activation);
  dense.activation = static_cast<Activation>(activation);
  if (residual) {
    check_device(*residual, "residual");
    check_dtype(*residual, y.scalar_type(), "residual");
    SPARSECORE_REQUIRE(residual->dim() == y.dim(), "residual: must have ", y.dim(), " dimension(s) as y, not ",
                       residual->dim());
    for (int64_t i = 0; i < y.dim(); ++i)
      SPARSECORE_REQUIRE(residual->size(i) == y.size(i), "residual: dimension ", i, " must be ", y.size(i),
                         " as y, not ", residual->size(i));
    made.residual = dense_input(*residual);
    dense.residual = made.residual->x.const_data_ptr();
    dense.residual_stride = made.residual->stride;
  }
  if (out) check_disjoint_nm(y, values, positions, scales, bias);
  dense.y = made.y.mutable_data_ptr();
  return made;
}

// The tensors of a call of nm_compress: its inputs with adjacent columns, its outputs.
struct NmCompressed {
  Tensor w, values, positions, scales;
  std::optional<Tensor> mask;
};

// Checks the arguments, allocates the outputs and fills `args`.
template <class Args>
NmCompressed nm_compressed(Args& args, const Tensor& w, int64_t n, int64_t m, ScalarType dtype,
                           const std::optional<Tensor>& mask) {
  check_device(w, "w");
  SPARSECORE_REQUIRE(w.dim() == 2, "w: must be [out_features, in_features], not of ", w.dim(), " dimension(s)");
  const std::optional<Dtype> to = as_dtype(dtype);
  SPARSECORE_REQUIRE(to == Dtype::f32 || to == Dtype::bf16 || to == Dtype::f16 || to == Dtype::i8 || to == Dtype::f8,
                     "dtype: must be float32, bfloat16, float16, int8 or float8_e4m3fn, not ",
                     torch::headeronly::toString(dtype));
  args.from = float_dtype(w, "w");
  args.to = *to;
  args.k = w.size(1);
  const int64_t rows = w.size(0), k = args.k;
  SPARSECORE_REQUIRE(k <= std::numeric_limits<int32_t>::max(), "w: in_features must be below 2^31, not ", k);
  const bool packed = m != 0;
  if (packed)
    SPARSECORE_REQUIRE(nm_is_packed(n, m), "n: ", n, ":", m,
                       " is none of 1:2, 2:4, 4:8, 6:8, 1:4, 2:8, 1:8, 1:16, and of the whole row (m = 0)");
  else SPARSECORE_REQUIRE(n >= 0 && n <= k, "n: must be in [0, in_features = ", k, "], not ", n);
  args.keep = n;
  args.group = packed ? m : k;
  args.index = packed ? Dtype::i8 : nm_index(k);
  NmCompressed made;
  made.w = w.stride(1) == 1 || k <= 1 ? w : torch::stable::contiguous(w);
  args.w = made.w.const_data_ptr();
  args.stride = made.w.stride(0);
  made.mask = mask;
  if (mask) {
    check_device(*mask, "mask");
    check_dtype(*mask, ScalarType::Bool, "mask");
    SPARSECORE_REQUIRE(mask->dim() == 2 && mask->size(0) == rows && mask->size(1) == k, "mask: must be [", rows, ", ",
                       k, "] as w");
    if (mask->stride(1) != 1 && k > 1) made.mask = torch::stable::contiguous(*mask);
    args.mask = static_cast<const uint8_t*>(made.mask->const_data_ptr());
    args.mask_stride = made.mask->stride(0);
  }
  const NmView view = args.view();
  made.values = empty(args.to, {rows, packed ? nm_words(k) * (kNmColumns / m) : 1, n});
  made.positions = packed ? empty(aoti_torch_dtype_uint8(), {rows, view.row_bytes()}) : empty(args.index, {rows, n});
  made.scales = empty(Dtype::f32, {scaled(args.to) ? rows : 0});
  args.values = made.values.mutable_data_ptr();
  args.positions = made.positions.mutable_data_ptr();
  if (scaled(args.to)) args.scales = static_cast<float*>(made.scales.mutable_data_ptr());
  return made;
}

inline void raise(const NmFinding& f, const NmView& w) {
  SPARSECORE_REQUIRE(f.fault != NmFault::range, "positions: row ", f.row, " has column ", f.column, ", outside [0, ",
                     w.k, ")");
  SPARSECORE_REQUIRE(f.fault != NmFault::order || w.packed(), "positions: columns of row ", f.row,
                     " must rise strictly, but column ", f.column, " is duplicated or out of order");
  SPARSECORE_REQUIRE(f.fault != NmFault::order, "positions: row ", f.row, ": those of the group at column ", f.column,
                     " do not rise below ", w.group);
  SPARSECORE_REQUIRE(f.fault != NmFault::population, "positions: row ", f.row, ": the mask of the group at column ",
                     f.column, " has not ", w.keep, " bits set");
}

}  // namespace sparsecore::binding
