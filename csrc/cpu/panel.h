// SPDX-License-Identifier: Apache-2.0
// Loops shared by weight ops once a row of W is a list (fp32 value, column). Included after a vec
// header by *_<isa>.cpp; everything here has internal linkage.
//
//   dot   one row of x: lanes along the list, x gathered
//   axpy  a panel of T rows of x: lanes along m, one nonzero at a time
//
//          panel [k][T]                      W chunk (rows r)         strip [rows][T]
//   c=0    x0 x1 .. xT-1       for each (v, c) of row r:  strip[r] += v * panel[c]
//   c=1    x0 x1 .. xT-1
//
// One nonzero is 1 broadcast and T/width loads that feed as many FMAs: at T = 64 the loads, not the
// decoding, are the limit, so columns are walked in blocks that keep the panel's part in L1.
#pragma once
#include "core/linear.h"

namespace sparsecore {
namespace {

struct RowList {
  const float* values;
  const int32_t* cols;
  int64_t count;
};

inline const float* widen_all(const void* base, Dtype d, int64_t begin, int64_t count, float* out) {
  if (d == Dtype::f32) return static_cast<const float*>(base) + begin;
  int64_t i = 0;
  if (d == Dtype::i8) {
    const int8_t* in = static_cast<const int8_t*>(base) + begin;
    for (; i + kWiden <= count; i += kWiden) widen(in + i, out + i);
  } else {
    const uint16_t* in = static_cast<const uint16_t*>(base) + begin;
    for (; i + kWiden <= count; i += kWiden) widen(in + i, d, out + i);
  }
  for (; i < count; ++i) out[i] = load_f32(base, d, begin + i);
  return out;
}

inline float dot(const RowList& row, const float* x) {
  constexpr int64_t W = Wide::width;
  typename Wide::reg acc[2] = {Wide::zero(), Wide::zero()};
  int64_t p = 0;
  for (; p + 2 * W <= row.count; p += 2 * W) {
    acc[0] = Wide::fma(Wide::load(row.values + p), Wide::gather(x, row.cols + p), acc[0]);
    acc[1] = Wide::fma(Wide::load(row.values + p + W), Wide::gather(x, row.cols + p + W), acc[1]);
  }
  if (p + W <= row.count) {
    acc[0] = Wide::fma(Wide::load(row.values + p), Wide::gather(x, row.cols + p), acc[0]);
    p += W;
  }
  float sum = Wide::sum(Wide::add(acc[0], acc[1]));
  for (; p < row.count; ++p) sum += row.values[p] * x[row.cols[p]];
  return sum;
}

// strip[0..T) += sum of values[p] * panel[cols[p]]. U independent sums hide the FMA's latency.
template <int T>
inline void axpy(const float* values, const int32_t* cols, int64_t count, const float* panel, float* strip) {
  using V = typename PanelVec<T>::type;
  constexpr int N = T / V::width, U = N >= 4 ? 1 : N == 2 ? 2 : 4;
  typename V::reg acc[U][N];
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) {
    acc[0][j] = V::load(strip + j * V::width);
#pragma GCC unroll 4
    for (int u = 1; u < U; ++u) acc[u][j] = V::zero();
  }
  int64_t p = 0;
  for (; p + U <= count; p += U) {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      const typename V::reg v = V::set1(values[p + u]);
      const float* x = panel + static_cast<int64_t>(cols[p + u]) * T;
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) acc[u][j] = V::fma(v, V::load(x + j * V::width), acc[u][j]);
    }
  }
  for (; U > 1 && p < count; ++p) {
    const typename V::reg v = V::set1(values[p]);
    const float* x = panel + static_cast<int64_t>(cols[p]) * T;
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) acc[0][j] = V::fma(v, V::load(x + j * V::width), acc[0][j]);
  }
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) {
#pragma GCC unroll 4
    for (int u = 1; u < U; ++u) acc[0][j] = V::add(acc[0][j], acc[u][j]);
    V::store(strip + j * V::width, acc[0][j]);
  }
}

// Width of the panel that holds rows [first, m) of x, at most `tile`.
inline int64_t panel_width(int64_t left, int64_t tile) {
  int64_t width = 4;
  while (width < left && width < tile) width *= 2;
  return width;
}

// Columns per pass over a chunk, for rows of `row_nnz` on average: as much panel as fits L1 beside the
// strip, but no fewer than ~48 nonzeros a visit, since each visit pays a mispredicted loop end.
inline int64_t block_columns(int64_t k, int64_t tile, int64_t row_nnz) {
  const int64_t l1 = 24576 / (tile * 4);
  const int64_t worth = row_nnz > 0 ? 48 * k / row_nnz : k;
  const int64_t block = (l1 > worth ? l1 : worth) / 64 * 64 + 64;
  return block < k ? block : k;
}

// One chunk of rows against one panel: strip[r] += W[r] · panel for all rows, block of k by block.
template <int T>
inline void panel_chunk(const RowList* rows, int64_t count, int64_t k, int64_t k_block, const float* panel,
                        float* strip, int64_t* cursor) {
  if (k_block >= k) {
    for (int64_t r = 0; r < count; ++r) axpy<T>(rows[r].values, rows[r].cols, rows[r].count, panel, strip + r * T);
    return;
  }
  for (int64_t r = 0; r < count; ++r) cursor[r] = 0;
  for (int64_t block_end = k_block;; block_end += k_block) {
    const bool last = block_end >= k;
    for (int64_t r = 0; r < count; ++r) {
      const int64_t p = cursor[r], left = rows[r].count - p;
      const int64_t here = last ? left : count_below(rows[r].cols + p, left, static_cast<int32_t>(block_end));
      axpy<T>(rows[r].values + p, rows[r].cols + p, here, panel, strip + r * T);
      cursor[r] = p + here;
    }
    if (last) return;
  }
}

// y[first + i, row_begin + r] = strip[r][i] + bias for the `live` rows of x that the panel holds.
inline void store_strip(const Linear& a, const float* strip, int64_t width, int64_t first, int64_t live,
                        int64_t row_begin, int64_t count) {
  for (int64_t i = 0; i < live; ++i) {
    const int64_t out = (first + i) * a.y_stride + row_begin;
    if (a.dtype == Dtype::f32 && !a.bias) {
      float* y = static_cast<float*>(a.y) + out;
      for (int64_t r = 0; r < count; ++r) y[r] = strip[r * width + i];
    } else {
      for (int64_t r = 0; r < count; ++r) {
        const float b = a.bias ? load_f32(a.bias, a.dtype, row_begin + r) : 0.0f;
        store_f32(a.y, a.dtype, out + r, strip[r * width + i] + b);
      }
    }
  }
}

inline void panels_run(const Linear& a, const Plan& plan, const float* packed, const RowList* rows,
                       int64_t row_begin, int64_t count, float* strip, int64_t* cursor) {
  for (int64_t first = 0; first < a.m; first += plan.tile) {
    const int64_t live = a.m - first < plan.tile ? a.m - first : plan.tile;
    const int64_t width = panel_width(live, plan.tile);
    const float* panel = packed + first * a.k;
    for (int64_t i = 0; i < count * width; ++i) strip[i] = 0.0f;
    switch (width) {
      case 4: panel_chunk<4>(rows, count, a.k, plan.k_block, panel, strip, cursor); break;
      case 8: panel_chunk<8>(rows, count, a.k, plan.k_block, panel, strip, cursor); break;
      case 16: panel_chunk<16>(rows, count, a.k, plan.k_block, panel, strip, cursor); break;
      case 32: panel_chunk<32>(rows, count, a.k, plan.k_block, panel, strip, cursor); break;
      default: panel_chunk<64>(rows, count, a.k, plan.k_block, panel, strip, cursor); break;
    }
    store_strip(a, strip, width, first, live, row_begin, count);
  }
}

// Fills pieces [begin, end) of the packed x: rows in fp32, or panels (linear.h).
inline void pack_x(const Linear& a, const Plan& plan, float* packed, int64_t begin, int64_t end) {
  const int64_t bytes = dtype_bytes(a.dtype);
  const auto row = [&](int64_t i) { return static_cast<const char*>(a.x) + i * a.x_stride * bytes; };
  if (plan.tile == 0) {
    for (int64_t i = begin; i < end; ++i) {
      float* out = packed + i * a.k;
      const float* in = widen_all(row(i), a.dtype, 0, a.k, out);
      if (in != out) std::memcpy(out, in, static_cast<size_t>(a.k) * sizeof(float));
    }
    return;
  }
  for (int64_t piece = begin; piece < end; ++piece) {
    const int64_t first = piece * plan.tile, left = a.m - first;
    const int64_t live = left < plan.tile ? left : plan.tile, width = panel_width(live, plan.tile);
    float* out = packed + first * a.k;
    for (int64_t c = 0; c < a.k; c += 64) {
      const int64_t span = a.k - c < 64 ? a.k - c : 64;
      float line[64];
      for (int64_t i = 0; i < width; ++i) {
        const float* in = i < live ? widen_all(row(first + i), a.dtype, c, span, line) : nullptr;
        for (int64_t j = 0; j < span; ++j) out[(c + j) * width + i] = in ? in[j] : 0.0f;
      }
    }
  }
}

}  // namespace
}  // namespace sparsecore
