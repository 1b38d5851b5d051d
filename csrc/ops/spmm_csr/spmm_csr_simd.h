// SPDX-License-Identifier: Apache-2.0
// spmm_csr loops, compiled once per ISA. Columns are checked in the pass that reads them, narrowed to
// int32 and values widened to fp32 where they are not so already, then go through cpu/panel.h: a
// gathered dot product for one row of x, panels for more. One thread owns rows [begin, end) and all of x.
#pragma once
#include "cpu/panel.h"
#include "ops/spmm_csr/spmm_csr.h"

namespace sparsecore::spmm_csr {
namespace {

// Columns rise strictly from >= low to < high. No early exit and an accumulator as wide as the index,
// so that it vectorises: a bool one does not (whole kernel at m = 1: 1.3 ns a nonzero against 0.8).
template <class Index>
inline bool columns_ok(const Index* cols, int64_t count, int64_t low, int64_t high) {
  if (count == 0) return true;
  Index falls = 0;
  for (int64_t p = 1; p < count; ++p) falls |= static_cast<Index>(cols[p] <= cols[p - 1]);
  return cols[0] >= low && cols[count - 1] < high && falls == 0;
}

inline int64_t count_below_i64(const int64_t* cols, int64_t count, int64_t limit) {
  int64_t p = 0;
  while (p < count && cols[p] < limit) ++p;
  return p;
}

struct Decoder {
  CsrView w;

  // A row of rising columns has at most k.
  bool open(int64_t row) const {
    const int64_t begin = w.offset(row), end = w.offset(row + 1);
    return begin >= 0 && begin <= end && end <= w.nnz && end - begin <= w.k;
  }

  int64_t piece(int64_t row, int64_t at, int64_t c0, int64_t c1, float* values, int32_t* cols, RowList& out) const {
    const int64_t begin = w.offset(row) + at, left = w.offset(row + 1) - begin;
    int64_t here = left;
    if (w.index == Dtype::i32) {
      out.cols = static_cast<const int32_t*>(w.col) + begin;
      if (c1 < w.k) here = count_below(out.cols, left, static_cast<int32_t>(c1));
      if (!columns_ok(out.cols, here, c0, c1)) return -1;
    } else {
      const int64_t* in = static_cast<const int64_t*>(w.col) + begin;
      if (c1 < w.k) here = count_below_i64(in, left, c1);
      if (!columns_ok(in, here, c0, c1)) return -1;
      for (int64_t p = 0; p < here; ++p) cols[p] = static_cast<int32_t>(in[p]);
      out.cols = cols;
    }
    if (c1 < w.k) {
      const int64_t next = here < left - here ? here : left - here, index = dtype_bytes(w.index);
      prefetch(static_cast<const char*>(w.col) + (begin + here) * index, next * index);
      prefetch(static_cast<const char*>(w.values) + (begin + here) * dtype_bytes(w.value), next * dtype_bytes(w.value));
    }
    out.values = widen_all(w.values, w.value, begin, here, values);
    out.count = here;
    return at + here;
  }

  bool close(int64_t row, int64_t at) const { return at == w.offset(row + 1) - w.offset(row); }
};

Plan plan(const Linear& a, const CsrView&) {
  if (a.m != 1) return panel_plan(a, false);
  Plan p;
  p.packed_floats = a.dtype == Dtype::f32 ? 0 : a.k;
  p.scratch_bytes = a.k * 8;
  return p;
}

void pack(const Args& a, int64_t begin, int64_t end) { pack_x(a.dense, a.plan, a.packed, begin, end); }

int64_t run(const Args& a, int64_t begin, int64_t end, void* scratch) {
  const Linear& d = a.dense;
  const Decoder decoder{a.weight};
  if (a.plan.tile != 0) return panels_run(d, a.plan, a.packed, nullptr, decoder, begin, end, scratch);
  const float* x = a.plan.packed_floats ? a.packed : static_cast<const float*>(d.x);
  float* values = static_cast<float*>(scratch);
  int32_t* cols = reinterpret_cast<int32_t*>(values + d.k);
  for (int64_t row = begin; row < end; ++row) {
    RowList list;
    if (!decoder.open(row) || decoder.piece(row, 0, 0, d.k, values, cols, list) < 0) return row;
    const float b = d.bias ? load_f32(d.bias, d.dtype, row) : 0.0f;
    store_f32(d.y, d.dtype, row, dot(list, x) + b);
  }
  return -1;
}

}  // namespace
}  // namespace sparsecore::spmm_csr
