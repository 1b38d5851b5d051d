// SPDX-License-Identifier: Apache-2.0
// From tensors to raw views, with errors that name the argument.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "core/linear.h"
#include "torch/stable.h"

namespace sparsecore::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::optional<Dtype> as_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::f16;
    case ScalarType::Char: return Dtype::i8;
    case ScalarType::Int: return Dtype::i32;
    case ScalarType::Long: return Dtype::i64;
    case ScalarType::Double: return Dtype::f64;
    case ScalarType::ComplexFloat: return Dtype::c64;
    case ScalarType::ComplexDouble: return Dtype::c128;
    case ScalarType::Short: return Dtype::i16;
    case ScalarType::Float8_e4m3fn: return Dtype::f8;
    default: return std::nullopt;
  }
}

inline Dtype float_dtype(const Tensor& t, const char* name) {
  const std::optional<Dtype> d = as_dtype(t.scalar_type());
  SPARSECORE_REQUIRE(d == Dtype::f32 || d == Dtype::bf16 || d == Dtype::f16, name,
                     ": dtype must be float32, bfloat16 or float16, not ",
                     torch::headeronly::toString(t.scalar_type()));
  return *d;
}

inline Dtype index_dtype(const Tensor& t, const char* name) {
  const std::optional<Dtype> d = as_dtype(t.scalar_type());
  SPARSECORE_REQUIRE(d == Dtype::i32 || d == Dtype::i64, name, ": dtype must be int32 or int64, not ",
                     torch::headeronly::toString(t.scalar_type()));
  return *d;
}

inline void check_dtype(const Tensor& t, ScalarType type, const char* name) {
  SPARSECORE_REQUIRE(t.scalar_type() == type, name, ": dtype must be ", torch::headeronly::toString(type), ", not ",
                     torch::headeronly::toString(t.scalar_type()));
}

// A library's bindings serve one kind of device: CUDA's where USE_CUDA is defined.
#if defined(USE_CUDA)
inline void check_device(const Tensor& t, const char* name) {
  SPARSECORE_REQUIRE(t.is_cuda(), name, ": must be on a CUDA device like the other arguments");
}
inline int32_t device_type() { return aoti_torch_device_type_cuda(); }
inline int32_t device_index() {
  int32_t index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_device_index(&index));
  return index;
}
#else
inline void check_device(const Tensor& t, const char* name) {
  SPARSECORE_REQUIRE(t.is_cpu(), name, ": must be on the CPU like the other arguments");
}
inline int32_t device_type() { return aoti_torch_device_type_cpu(); }
inline int32_t device_index() { return 0; }
#endif

// An array of a format: contiguous, of `dim` dimensions.
inline void check_array(const Tensor& t, int64_t dim, const char* name) {
  check_device(t, name);
  SPARSECORE_REQUIRE(t.dim() == dim, name, ": must have ", dim, " dimension(s), not ", t.dim());
  SPARSECORE_REQUIRE(t.is_contiguous(), name, ": must be contiguous");
}

// Bytes [first, last) that a tensor's elements span.
inline std::pair<const char*, const char*> byte_span(const Tensor& t) {
  const char* first = static_cast<const char*>(t.const_data_ptr());
  if (t.numel() == 0) return {first, first};
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
  return {first, first + (last + 1) * static_cast<int64_t>(t.element_size())};
}

inline void check_disjoint(const Tensor& out, const Tensor& in, const char* name) {
  const auto a = byte_span(out), b = byte_span(in);
  SPARSECORE_REQUIRE(a.first >= b.second || b.first >= a.second, "out: overlaps ", name, " in memory");
}

// x as [m, k] with adjacent columns: itself where its strides allow, else a contiguous copy.
struct DenseInput {
  Tensor x;
  int64_t m, k, stride;
};

inline DenseInput dense_input(const Tensor& x) {
  check_device(x, "x");
  SPARSECORE_REQUIRE(x.dim() >= 1, "x: must have at least one dimension, [..., in_features]");
  const int64_t dims = x.dim(), k = x.size(dims - 1);
  SPARSECORE_REQUIRE(k <= std::numeric_limits<int32_t>::max(), "x: in_features must be below 2^31, not ", k);
  int64_t m = 1;
  for (int64_t i = 0; i + 1 < dims; ++i) m *= x.size(i);
  if (dims == 2 && x.stride(1) == 1) return {x, m, k, x.stride(0)};
  if (x.is_contiguous()) return {x, m, k, k};
  return {torch::stable::contiguous(x), m, k, k};
}

// An uninitialised contiguous tensor on the CPU, or the current CUDA device. The C shim, not ops.h: torch's dispatcher by name costs 2 us a
// tensor.
inline Tensor empty(int32_t dtype, const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(sizes[i], 1);
  }
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), dtype, device_type(), device_index(), &made));
  return Tensor(made);
}

inline Tensor empty(Dtype dtype, const std::vector<int64_t>& sizes) {
  switch (dtype) {
    case Dtype::bf16: return empty(aoti_torch_dtype_bfloat16(), sizes);
    case Dtype::f16: return empty(aoti_torch_dtype_float16(), sizes);
    case Dtype::i8: return empty(aoti_torch_dtype_int8(), sizes);
    case Dtype::i32: return empty(aoti_torch_dtype_int32(), sizes);
    case Dtype::i64: return empty(aoti_torch_dtype_int64(), sizes);
    case Dtype::i16: return empty(aoti_torch_dtype_int16(), sizes);
    case Dtype::f8: return empty(aoti_torch_dtype_float8_e4m3fn(), sizes);
    default: return empty(aoti_torch_dtype_float32(), sizes);
  }
}

inline int32_t dtype_code(const Tensor& t) {
  int32_t dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  return dtype;
}

inline Tensor empty_like_dtype(const Tensor& like, const std::vector<int64_t>& sizes) {
  return empty(dtype_code(like), sizes);
}

// A fresh y [..., n] of x's dtype, or `out` once its shape, dtype and layout are right.
inline Tensor linear_output(const Tensor& x, int64_t n, const std::optional<Tensor>& out) {
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = n;
  if (!out) return empty_like_dtype(x, sizes);
  check_array(*out, x.dim(), "out");
  check_dtype(*out, x.scalar_type(), "out");
  for (int64_t i = 0; i < x.dim(); ++i)
    SPARSECORE_REQUIRE(out->size(i) == sizes[i], "out: dimension ", i, " must be ", sizes[i], ", not ", out->size(i));
  check_disjoint(*out, x, "x");
  return *out;
}

inline const void* bias_pointer(const std::optional<Tensor>& bias, const Tensor& x, int64_t n) {
  if (!bias) return nullptr;
  check_array(*bias, 1, "bias");
  check_dtype(*bias, x.scalar_type(), "bias");
  SPARSECORE_REQUIRE(bias->numel() == n, "bias: must have out_features = ", n, " elements, not ", bias->numel());
  return bias->const_data_ptr();
}

}  // namespace sparsecore::binding
