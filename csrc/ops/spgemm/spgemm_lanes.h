// SPDX-License-Identifier: Apache-2.0
// Numbers and the verbs of spgemm that an ISA may do better; these are the plain ones.
#pragma once
#include <cstring>

#include "ops/spgemm/spgemm.h"

namespace sparsecore::spgemm {
namespace {

template <class Real>
struct Complex {
  Real re, im;
};

#if defined(__FMA__) || defined(__aarch64__)
inline float madd(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double madd(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
inline float madd(float a, float b, float c) { return a * b + c; }
inline double madd(double a, double b, double c) { return a * b + c; }
#endif
template <class Real>
inline Complex<Real> madd(Complex<Real> a, Complex<Real> b, Complex<Real> c) {
  return {madd(a.re, b.re, madd(-a.im, b.im, c.re)), madd(a.re, b.im, madd(a.im, b.re, c.im))};
}

inline int64_t bit_count(uint64_t bits) { return __builtin_popcountll(bits); }

struct None {};  // the values of a pattern
template <class T>
constexpr bool kValues = true;
template <>
constexpr bool kValues<None> = false;

template <class T>
constexpr bool kReal = false;
template <>
constexpr bool kReal<float> = true;
template <>
constexpr bool kReal<double> = true;

constexpr int64_t kNeverThick = 65;

struct PlainLanes {
  // Most products of a row that is listed, most columns that unlist() takes; the others are marked as bits.
  static constexpr int64_t kListed = 64, kSorted = 32;
  static constexpr int64_t kMerged = 0;  // most products of a row that merge() takes from where they are staged
  // Moves list[0, count) to col and its sums to out; by ranks, which need no branch, if sorted.
  template <int64_t kWidth, class T, class Index>
  static void unlist_in(const int32_t* list, int64_t count, T* sums, Index* col, T* out) {
    int32_t keys[kWidth], ranks[kWidth] = {};
    for (int64_t j = 0; j < kWidth; ++j) keys[j] = j < count ? list[j] : INT32_MAX;
    for (int64_t i = 0; i < count; ++i) {
      const int32_t key = list[i];
      for (int64_t j = 0; j < kWidth; ++j) ranks[j] += keys[j] > key;
    }
    for (int64_t j = 0; j < count; ++j) {
      col[ranks[j]] = static_cast<Index>(keys[j]);
      if constexpr (kValues<T>) {
        out[ranks[j]] = sums[keys[j]];
        sums[keys[j]] = T{};
      }
    }
  }
  template <class T, class Index>
  static void unlist(const int32_t* list, int64_t count, bool /*sorted*/, T* sums, Index* col, T* out) {
    if (count <= 8) unlist_in<8>(list, count, sums, col, out);
    else if (count <= 16) unlist_in<16>(list, count, sums, col, out);
    else unlist_in<32>(list, count, sums, col, out);
  }

  // Bits a word of B needs on average for Sums::thick.
  static constexpr int64_t thick_bits(Dtype) { return kNeverThick; }
  template <class T>
  static constexpr bool kThickens = false;  // whether it has an add() for that

  // Columns of a word's bits, rising; writes bit_count(bits) elements and none beside them.
  template <class Index>
  static void columns(uint64_t bits, int64_t first, Index* out) {
    for (; bits != 0; bits &= bits - 1) *out++ = static_cast<Index>(first + __builtin_ctzll(bits));
  }

  // Indices of the words in [0, count) that are not zero, rising; list has room for count + 16.
  static int64_t touched(const uint64_t* bits, int64_t count, int32_t* list) {
    int64_t found = 0;
    for (int64_t w = 0; w < count; ++w) {
      list[found] = static_cast<int32_t>(w);
      found += bits[w] != 0;
    }
    return found;
  }

  // Lays `count` columns and elements, at most kStage, and as many times `a` side by side. May write 16 past
  // the last of each.
  template <class T, class Index>
  static void stage(const Index* col, const T* values, T a, int64_t count, int32_t* columns, T* factors, T* elements) {
    for (int64_t j = 0; j < count; ++j) {
      columns[j] = static_cast<int32_t>(col[j]);
      if constexpr (kValues<T>) {
        factors[j] = a;
        elements[j] = values[j];
      }
    }
  }

  // Moves sums[c] of each bit to out, and zeroes them. Returns past what was written.
  template <class T>
  static T* take(T* sums, uint64_t bits, T* out) {
    for (; bits != 0; bits &= bits - 1) {
      T& sum = sums[__builtin_ctzll(bits)];
      *out++ = sum;
      sum = T{};
    }
    return out;
  }

  // The same for listed columns; sums begin at column `first`.
  template <class T, class Index>
  static void take(T* sums, int64_t first, const Index* col, int64_t count, T* out) {
    for (int64_t j = 0; j < count; ++j) {
      out[j] = sums[col[j] - first];
      sums[col[j] - first] = T{};
    }
  }
};

template <class T>
struct Tag {
  using Type = T;
};
// fn(Tag of the values, Tag of the indices).
template <class Fn>
void typed(const CsrView& a, const Fn& fn) {
  const auto with = [&](auto index) {
    if (!a.values) return fn(Tag<None>{}, index);
    switch (a.value) {
      case Dtype::f64: return fn(Tag<double>{}, index);
      case Dtype::c64: return fn(Tag<Complex<float>>{}, index);
      case Dtype::c128: return fn(Tag<Complex<double>>{}, index);
      default: return fn(Tag<float>{}, index);
    }
  };
  if (a.index == Dtype::i32) with(Tag<int32_t>{});
  else with(Tag<int64_t>{});
}

}  // namespace
}  // namespace sparsecore::spgemm
