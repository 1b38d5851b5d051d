// SPDX-License-Identifier: Apache-2.0
// Gradients of spgemm, kept to the operands' patterns, with as many products as C has. G [m, n] holds the
// gradient of C's values, its pattern C's (any order):
//
//   for_a  x[p] = sum over j in row k of B of G[i, j] * conj(B[k, j])      for each p = (i, k) of A
//   for_b  y[q] = sum over i of conj(A[i, k]) * G[i, j]                    for each q = (k, j) of B
//
// Row i of G is laid out dense and read at the columns of B's rows. A product that G lacks counts as zero.
// for_b gives a call rows [begin, end) of B and walks all of A, so a sum has one order however many calls
// share the work; each lays out G again where A has an element for it.
#pragma once
#include "ops/spgemm/spgemm_rows.h"

namespace sparsecore::spgemm {
namespace {

inline float conjugate(float a) { return a; }
inline double conjugate(double a) { return a; }
template <class Real>
inline Complex<Real> conjugate(Complex<Real> a) {
  return {a.re, -a.im};
}
inline float plus(float a, float b) { return a + b; }
inline double plus(double a, double b) { return a + b; }
template <class Real>
inline Complex<Real> plus(Complex<Real> a, Complex<Real> b) {
  return {a.re + b.re, a.im + b.im};
}

// Row of G: checked, and laid out in or wiped from dense. Returns false for a bad row.
template <class T, class Index>
bool lay(const Gradients& g, int64_t row, T* dense) {
  const Rows<Index> c(g.g);
  const T* const values = static_cast<const T*>(g.g.values);
  const int64_t from = c.crow[row], to = c.crow[row + 1];
  if (from < 0 || from > to || to > g.g.nnz) return false;
  for (int64_t p = from; p < to; ++p) {
    if (static_cast<uint64_t>(c.col[p]) >= static_cast<uint64_t>(g.g.k)) return false;
    dense[c.col[p]] = plus(dense[c.col[p]], values[p]);
  }
  return true;
}
template <class T, class Index>
void wipe(const Gradients& g, int64_t row, T* dense) {
  const Rows<Index> c(g.g);
  for (int64_t p = c.crow[row]; p < c.crow[row + 1]; ++p) dense[c.col[p]] = T{};
}

template <class T, class Index>
int64_t for_a(const Gradients& g, int64_t begin, int64_t end, void* scratch) {
  const Rows<Index> m(g.a), b(g.b);
  const T* const y = static_cast<const T*>(g.b.values);
  T* const dense = static_cast<T*>(scratch);
  for (int64_t row = begin; row < end; ++row) {
    if (!lay<T, Index>(g, row, dense)) return row;
    for (int64_t p = m.crow[row]; p < m.crow[row + 1]; ++p) {
      const int64_t k = m.col[p];
      T sum{};
      for (int64_t q = b.crow[k]; q < b.crow[k + 1]; ++q) sum = madd(dense[b.col[q]], conjugate(y[q]), sum);
      static_cast<T*>(g.out)[p] = sum;
    }
    wipe<T, Index>(g, row, dense);
  }
  return -1;
}

template <class T, class Index>
int64_t for_b(const Gradients& g, int64_t begin, int64_t end, void* scratch) {
  const Rows<Index> m(g.a), b(g.b);
  const T* const x = static_cast<const T*>(g.a.values);
  T *const dense = static_cast<T*>(scratch), *const out = static_cast<T*>(g.out);
  if (begin < end) std::memset(static_cast<void*>(out + b.crow[begin]), 0, (b.crow[end] - b.crow[begin]) * sizeof(T));
  for (int64_t row = 0; row < g.a.n; ++row) {
    bool laid = false;
    for (int64_t p = m.crow[row]; p < m.crow[row + 1]; ++p) {
      const int64_t k = m.col[p];
      if (k < begin || k >= end) continue;
      if (!laid && !lay<T, Index>(g, row, dense)) return row;
      laid = true;
      const T factor = conjugate(x[p]);
      for (int64_t q = b.crow[k]; q < b.crow[k + 1]; ++q) out[q] = madd(factor, dense[b.col[q]], out[q]);
    }
    if (laid) wipe<T, Index>(g, row, dense);
  }
  return -1;
}

}  // namespace
}  // namespace sparsecore::spgemm
