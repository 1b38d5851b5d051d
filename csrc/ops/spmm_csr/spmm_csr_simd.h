// SPDX-License-Identifier: Apache-2.0
// spmm_csr loops, compiled once per ISA. Every row is checked, narrowed to int32 columns and widened to
// fp32 values where it is not so already, then goes through cpu/panel.h: a gathered dot product for
// one row of x, panels for more. One thread owns rows [begin, end) and all of x.
#pragma once
#include "cpu/panel.h"
#include "ops/spmm_csr/spmm_csr.h"

namespace sparsecore::spmm_csr {
namespace {

constexpr int64_t kChunkRows = 32;
constexpr int64_t kListFloor = 32768;  // list elements that scratch holds at least

// Columns rise strictly from >= 0 to < k. Written to vectorise: no early exit.
template <class Index>
inline bool columns_ok(const Index* cols, int64_t count, int64_t k) {
  if (count == 0) return true;
  bool bad = cols[0] < 0 || cols[count - 1] >= k;
  for (int64_t p = 1; p < count; ++p) bad |= cols[p] <= cols[p - 1];
  return !bad;
}

inline int64_t list_capacity(const CsrView& w) { return w.k > kListFloor ? w.k : kListFloor; }

struct Scratch {
  float* strip;      // [kChunkRows * 64]
  float* values;     // [list_capacity]
  int32_t* cols;     // [list_capacity]
  RowList* rows;     // [kChunkRows]
  int64_t* cursor;   // [kChunkRows]
};

inline int64_t scratch_bytes(const CsrView& w) {
  return kChunkRows * static_cast<int64_t>(64 * sizeof(float) + sizeof(RowList) + sizeof(int64_t)) +
         list_capacity(w) * 8 + 128;
}

inline Scratch carve(const CsrView& w, void* base) {
  Scratch s;
  s.strip = static_cast<float*>(base);
  s.rows = reinterpret_cast<RowList*>(s.strip + kChunkRows * 64);
  s.cursor = reinterpret_cast<int64_t*>(s.rows + kChunkRows);
  s.values = reinterpret_cast<float*>(s.cursor + kChunkRows);
  s.cols = reinterpret_cast<int32_t*>(s.values + list_capacity(w));
  return s;
}

// The row's length when its offsets hold, else -1. A row of rising columns has at most k.
inline int64_t row_length(const CsrView& w, int64_t row) {
  const int64_t begin = w.offset(row), end = w.offset(row + 1);
  return begin < 0 || end < begin || end > w.nnz || end - begin > w.k ? -1 : end - begin;
}

inline bool decode(const CsrView& w, int64_t row, int64_t length, float* values, int32_t* cols, RowList& out) {
  const int64_t begin = w.offset(row);
  out.count = length;
  if (w.index == Dtype::i32) {
    out.cols = static_cast<const int32_t*>(w.col) + begin;
    if (!columns_ok(out.cols, length, w.k)) return false;
  } else {
    const int64_t* in = static_cast<const int64_t*>(w.col) + begin;
    if (!columns_ok(in, length, w.k)) return false;
    for (int64_t p = 0; p < length; ++p) cols[p] = static_cast<int32_t>(in[p]);
    out.cols = cols;
  }
  out.values = widen_all(w.values, w.value, begin, length, values);
  return true;
}

Plan plan(const Linear& a, const CsrView& w) {
  Plan p;
  if (a.m == 1) {
    p.packed_floats = a.dtype == Dtype::f32 ? 0 : a.k;
  } else {
    p.tile = panel_width(a.m, 64);
    p.packed_floats = a.m / p.tile * p.tile * a.k + (a.m % p.tile ? panel_width(a.m % p.tile, p.tile) * a.k : 0);
    p.k_block = block_columns(a.k, p.tile, a.n > 0 ? w.nnz / a.n : 0);
  }
  p.chunk_rows = kChunkRows;
  p.scratch_bytes = scratch_bytes(w);
  return p;
}

void pack(const Args& a, int64_t begin, int64_t end) { pack_x(a.dense, a.plan, a.packed, begin, end); }

int64_t run(const Args& a, int64_t begin, int64_t end, void* base) {
  const Linear& d = a.dense;
  const CsrView& w = a.weight;
  const Scratch s = carve(w, base);
  if (a.plan.tile == 0) {
    const float* x = a.plan.packed_floats ? a.packed : static_cast<const float*>(d.x);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t length = row_length(w, row);
      RowList list;
      if (length < 0 || !decode(w, row, length, s.values, s.cols, list)) return row;
      const float b = d.bias ? load_f32(d.bias, d.dtype, row) : 0.0f;
      store_f32(d.y, d.dtype, row, dot(list, x) + b);
    }
    return -1;
  }
  for (int64_t row = begin; row < end;) {
    const int64_t first = row, capacity = list_capacity(w);
    int64_t used = 0, count = 0;
    for (; row < end && count < kChunkRows; ++row, ++count) {
      const int64_t length = row_length(w, row);
      if (length < 0) return row;
      if (used + length > capacity) break;
      if (!decode(w, row, length, s.values + used, s.cols + used, s.rows[count])) return row;
      used += length;
    }
    panels_run(d, a.plan, a.packed, s.rows, first, count, s.strip, s.cursor);
  }
  return -1;
}

}  // namespace
}  // namespace sparsecore::spmm_csr
