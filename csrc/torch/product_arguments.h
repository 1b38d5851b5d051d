// SPDX-License-Identifier: Apache-2.0
// Operands of a product of CSR matrices, A · B, as its bindings on CPU and CUDA take them.
#pragma once
#include "torch/csr_arguments.h"

namespace sparsecore::binding {

using OptionalTensor = std::optional<Tensor>;

constexpr CsrNames kNamesA{"a_crow_indices", "a_col_indices", "a_values", "rows", "k:"};
constexpr CsrNames kNamesB{"b_crow_indices", "b_col_indices", "b_values", "rows", "n:"};
constexpr CsrNames kNamesC{"crow_indices", "col_indices", "values", "rows of a", "n:"};

// Numbers that a device's kernels multiply.
inline bool is_product_dtype(std::optional<Dtype> d) {
#if defined(USE_CUDA)
  return d == Dtype::f32 || d == Dtype::f64 || d == Dtype::bf16 || d == Dtype::f16;
#else
  return d == Dtype::f32 || d == Dtype::f64 || d == Dtype::c64 || d == Dtype::c128;
#endif
}
#if defined(USE_CUDA)
constexpr const char* kProductDtypes = "float32, float64, bfloat16 or float16";
#else
constexpr const char* kProductDtypes = "float32, float64, complex64 or complex128";
#endif

inline const void* values_of(const OptionalTensor& values, const CsrView& w, const CsrNames& names, Dtype& dtype) {
  if (!values) return nullptr;
  check_count(*values, w, names);
  const std::optional<Dtype> d = as_dtype(values->scalar_type());
  SPARSECORE_REQUIRE(is_product_dtype(d), names.values, ": dtype must be ", kProductDtypes, ", not ",
                     torch::headeronly::toString(values->scalar_type()));
  dtype = *d;
  static const char none = 0;  // an empty tensor has no address, and a null one stands for a pattern
  return w.nnz > 0 ? values->const_data_ptr() : &none;
}

struct Operands {
  CsrView a, b;
};

inline Operands operands(const Tensor& a_crow, const Tensor& a_col, const OptionalTensor& a_values,
                         const Tensor& b_crow, const Tensor& b_col, const OptionalTensor& b_values, int64_t n) {
  Operands o{csr_pattern(a_crow, a_col, 0, kNamesA), csr_pattern(b_crow, b_col, n, kNamesB)};
  CsrView &a = o.a, &b = o.b;
  a.k = b.n;
  SPARSECORE_REQUIRE(a.index == b.index, "b_crow_indices: dtype must be that of a_crow_indices, ", dtype_name(a.index),
                     ", not ", dtype_name(b.index));
  a.values = values_of(a_values, a, kNamesA, a.value);
  b.values = values_of(b_values, b, kNamesB, b.value);
  SPARSECORE_REQUIRE(!a_values || a.value == b.value, "b_values: dtype must be that of a_values, ", dtype_name(a.value),
                     ", not ", dtype_name(b.value));
  return o;
}

// The pattern of C as a caller has it: lengths and dtype are right.
inline CsrView pattern_of_c(const CsrView& a, const Tensor& crow, const Tensor& col, int64_t n) {
  const CsrView c = csr_pattern(crow, col, n, kNamesC);
  SPARSECORE_REQUIRE(c.n == a.n, "crow_indices: must have rows of a + 1 = ", a.n + 1, " elements, not ", c.n + 1);
  SPARSECORE_REQUIRE(c.index == a.index, "crow_indices: dtype must be that of a_crow_indices, ", dtype_name(a.index),
                     ", not ", dtype_name(c.index));
  return c;
}

// nnz(C) fits its offsets.
inline void check_nonzeros(const CsrView& a, int64_t nnz) {
  SPARSECORE_REQUIRE(a.index == Dtype::i64 || nnz <= std::numeric_limits<int32_t>::max(),
                     "a_crow_indices: the product has ", nnz,
                     " nonzeros, more than int32 offsets count; pass int64 indices");
}

}  // namespace sparsecore::binding
