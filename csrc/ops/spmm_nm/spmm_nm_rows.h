// SPDX-License-Identifier: Apache-2.0
// spmm_nm loops for a constant fan-in, compiled once per ISA: up to 16 rows of x straight from int16 columns, a row of
// W at a time; more, and int32 columns, by the lists of cpu/panel.h.
#pragma once
#include "cpu/panel.h"
#include "ops/spmm_nm/spmm_nm.h"

// The ISA's file has defined, before this header:
//   Lanes    4 or 8 numbers as a register (cpu/simd), and gather(x, cols): x at as many int16 columns
namespace sparsecore::spmm_nm {
namespace {

inline const void* element(const NmView& w, int64_t i) {
  return static_cast<const char*>(w.values) + i * dtype_bytes(w.value);
}

inline const float* widened(const NmView& w, int64_t begin, int64_t count, float* out) {
  if (w.value != Dtype::f8) return widen_all(w.values, w.value, begin, count, out);
  for (int64_t i = 0; i < count; ++i) out[i] = load_f32(w.values, Dtype::f8, begin + i);
  return out;
}

// Columns of a row rise strictly and lie in [0, k). No early exit, so that it vectorises.
inline bool columns_ok(const int16_t* cols, int64_t count, int64_t k) {
  if (count == 0) return true;
  int16_t falls = 0;
  for (int64_t p = 1; p < count; ++p) falls |= static_cast<int16_t>(cols[p] <= cols[p - 1]);
  return falls == 0 && cols[0] >= 0 && cols[count - 1] < k;
}

SPARSECORE_INLINE uint64_t four(const int16_t* cols) {
  uint64_t columns;
  std::memcpy(&columns, cols, 8);
  return columns;
}
SPARSECORE_INLINE uint64_t column_of(uint64_t columns, int j) { return columns >> 16 * j & 0xffff; }

// sum[0..width) += values[p] * x[cols[p]], lanes along the row, x gathered.
inline void dot(const float* values, const int16_t* cols, int64_t count, const float* x, float* sum) {
  using V = Lanes;
  constexpr int64_t width = V::width;
  typename V::reg acc[2] = {V::load(sum), V::zero()};
  int64_t p = 0;
  for (; p + 2 * width <= count; p += 2 * width)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j)
      acc[j] = V::fma(V::load(values + p + j * width), V::gather(x, cols + p + j * width), acc[j]);
  V::store(sum, V::add(acc[0], acc[1]));
  for (; p < count; ++p) sum[p % width] += values[p] * x[cols[p]];
}

// strip[0..T) += sum of values[p] * panel[cols[p]]: axpy of cpu/panel.h, four columns a load.
template <int T>
inline void axpy_row(const float* values, const int16_t* cols, int64_t count, const float* panel, float* strip) {
  using V = typename PanelVec<T>::type;
  constexpr int N = T / V::width;
  typename V::reg acc[4][N];
#pragma GCC unroll 4
  for (int j = 0; j < N; ++j) {
    acc[0][j] = V::load(strip + j * V::width);
#pragma GCC unroll 4
    for (int u = 1; u < 4; ++u) acc[u][j] = V::zero();
  }
  int64_t p = 0;
  for (; p + 4 <= count; p += 4) {
    const uint64_t columns = four(cols + p);
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      const typename V::reg v = V::set1(values[p + u]);
      const float* x = panel + column_of(columns, u) * T;
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) acc[u][j] = V::fma(v, V::load(x + j * V::width), acc[u][j]);
    }
  }
  for (; p < count; ++p)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j)
      acc[0][j] = V::fma(V::set1(values[p]), V::load(panel + cols[p] * int64_t{T} + j * V::width), acc[0][j]);
#pragma GCC unroll 4
  for (int j = 0; j < N; ++j)
    V::store(strip + j * V::width, V::add(V::add(acc[0][j], acc[1][j]), V::add(acc[2][j], acc[3][j])));
}

// Rows [begin, end) of a constant fan-in of int16 columns against at most T rows of x, a row at a time: its positions
// are checked, its values widened, then each stored element is met once.
template <int T>
inline int64_t run_rows(const Args& a, int64_t begin, int64_t end) {
  constexpr int64_t kRows = 16, kPiece = 256;
  const NmView& w = a.weight;
  const float* x = a.plan.packed_floats ? a.packed : static_cast<const float*>(a.dense.x);
  const int64_t row_bytes = w.keep * (2 + dtype_bytes(w.value)), far = kAhead / (row_bytes + 1) + 1;
  alignas(64) float buffer[kPiece];
  alignas(64) float strips[kRows * T];
  for (int64_t row = begin; row < end; row += kRows) {
    const int64_t count = end - row < kRows ? end - row : kRows;
    for (int64_t r = 0; r < count; ++r) {
      const int64_t first = (row + r) * w.keep;
      const int16_t* cols = static_cast<const int16_t*>(w.positions) + first;
      if (!columns_ok(cols, w.keep, w.k)) return row + r;
      prefetch(cols + far * w.keep, w.keep * 2);
      prefetch(element(w, first + far * w.keep), w.keep * dtype_bytes(w.value));
      alignas(64) float sums[T < 16 ? 16 : T] = {};
      for (int64_t p = 0; p < w.keep; p += kPiece) {
        const int64_t some = w.keep - p < kPiece ? w.keep - p : kPiece;
        const float* values = widened(w, first + p, some, buffer);
        if constexpr (T == 1) dot(values, cols + p, some, x, sums);
        else axpy_row<T>(values, cols + p, some, x, sums);
      }
      for (int64_t j = 1; T == 1 && j < Lanes::width; ++j) sums[0] += sums[j];
      std::memcpy(strips + r * T, sums, T * sizeof(float));
    }
    store_strip(a.dense, w.scales, strips, T, 0, a.dense.m, row, count);
  }
  return -1;
}

inline void widen_positions(const int16_t* in, int64_t count, int32_t* out) {
  for (int64_t p = 0; p < count; ++p) out[p] = in[p];
}

// Columns rise strictly from >= low to < high.
inline bool columns_ok(const int32_t* cols, int64_t count, int64_t low, int64_t high) {
  return count == 0 || (cols[0] >= low && cols[count - 1] < high && rises(cols, count));
}

// The lists of cpu/panel.h for a constant fan-in.
struct RowDecoder {
  NmView w;

  bool open(int64_t) const { return true; }
  bool close(int64_t, int64_t at) const { return at == w.keep; }
  bool done(int64_t, const Cursor& c) const { return c.at == w.keep; }

  int64_t piece(int64_t row, int64_t at, int64_t c0, int64_t c1, float* values, int32_t* cols, RowList& out) const {
    const int64_t begin = row * w.keep + at, left = w.keep - at;
    int64_t here = left;
    if (w.index == Dtype::i32) {
      out.cols = static_cast<const int32_t*>(w.positions) + begin;
      if (c1 < w.k) here = count_below(out.cols, left, static_cast<int32_t>(c1));
      if (!columns_ok(out.cols, here, c0, c1)) return -1;
    } else {  // as many at a time as may be written past a list's end
      const int16_t* in = static_cast<const int16_t*>(w.positions) + begin;
      here = 0;
      for (int64_t some = 64; some == 64 && here < left; here += some) {
        const int64_t next = left - here < 64 ? left - here : 64;
        widen_positions(in + here, next, cols + here);
        some = c1 < w.k ? count_below(cols + here, next, static_cast<int32_t>(c1)) : next;
        if (!columns_ok(cols + here, some, here > 0 ? cols[here - 1] + int64_t{1} : c0, c1)) return -1;
      }
      out.cols = cols;
    }
    if (c1 < w.k) {
      const int64_t next = here < left - here ? here : left - here, index = dtype_bytes(w.index);
      prefetch(static_cast<const char*>(w.positions) + (begin + here) * index, next * index);
      prefetch(element(w, begin + here), next * dtype_bytes(w.value));
    }
    out.values = widened(w, begin, here, values);
    out.count = here;
    return at + here;
  }

  bool step(int64_t row, Cursor& c, float* values, int32_t* cols, RowList& out) const {
    const int64_t begin = row * w.keep + c.at, left = w.keep - c.at, count = left < kStep ? left : kStep;
    const int64_t index = dtype_bytes(w.index), value = dtype_bytes(w.value);
    out.cols = cols;
    if (w.index == Dtype::i32) out.cols = static_cast<const int32_t*>(w.positions) + begin;
    else widen_positions(static_cast<const int16_t*>(w.positions) + begin, count, cols);
    if (!columns_ok(out.cols, count, c.column, w.k)) return false;
    prefetch(static_cast<const char*>(w.positions) + begin * index + kAhead, count * index);
    prefetch(static_cast<const char*>(element(w, begin)) + kAhead, count * value);
    out.values = widened(w, begin, count, values);
    out.count = count;
    c = {c.at + count, out.cols[count - 1] + int64_t{1}};
    return true;
  }
};

}  // namespace
}  // namespace sparsecore::spmm_nm
