// SPDX-License-Identifier: Apache-2.0
// spmm_csr loops, compiled once per ISA. Columns are checked in the pass that reads them, narrowed to
// int32 and values widened to fp32 where they are not so already, then go through cpu/panel.h: a
// gathered dot product for one row of x, panels for more. One thread owns rows [begin, end) and all of x.
#pragma once
#include "cpu/panel.h"
#include "ops/spmm_csr/spmm_csr.h"

namespace sparsecore::spmm_csr {
namespace {

using sparsecore::rises;
// No early exit and an accumulator as wide as the index, so that it vectorises.
inline bool rises(const int64_t* cols, int64_t count) {
  int64_t falls = 0;
  for (int64_t p = 1; p < count; ++p) falls |= static_cast<int64_t>(cols[p] <= cols[p - 1]);
  return falls == 0;
}

// Columns rise strictly from >= low to < high.
template <class Index>
inline bool columns_ok(const Index* cols, int64_t count, int64_t low, int64_t high) {
  return count == 0 || (cols[0] >= low && cols[count - 1] < high && rises(cols, count));
}

inline int64_t count_below_i64(const int64_t* cols, int64_t count, int64_t limit) {
  int64_t p = 0;
  while (p < count && cols[p] < limit) ++p;
  return p;
}

constexpr int64_t kRun = 128;  // nonzeros a step
static_assert(kRun <= kStep);

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
    out.values = widen_past(w.values, w.value, begin, here, w.nnz, values);
    out.count = here;
    return at + here;
  }

  bool done(int64_t row, const Cursor& c) const { return c.at == w.offset(row + 1) - w.offset(row); }

  // Streams of columns and values that are read once each: asking for the line kAhead bytes on took 5.0 to
  // 3.8 ms (m = 1, 4096 x 4096 fp32 at 50 %, 2 threads). A step of 128 asks for 16 lines, about what a core can
  // wait for at once: medians of m = 1, 4, 16 at 80 and 90 % fell by 5 to 18 % against 256.
  bool step(int64_t row, Cursor& c, float* values, int32_t* cols, RowList& out) const {
    const int64_t begin = w.offset(row) + c.at, left = w.offset(row + 1) - begin;
    const int64_t count = left < kRun ? left : kRun, index = dtype_bytes(w.index), value = dtype_bytes(w.value);
    if (w.index == Dtype::i32) {
      out.cols = static_cast<const int32_t*>(w.col) + begin;
      if (!columns_ok(out.cols, count, c.column, w.k)) return false;
    } else {
      const int64_t* in = static_cast<const int64_t*>(w.col) + begin;
      if (!columns_ok(in, count, c.column, w.k)) return false;
      for (int64_t p = 0; p < count; ++p) cols[p] = static_cast<int32_t>(in[p]);
      out.cols = cols;
    }
    prefetch(static_cast<const char*>(w.col) + begin * index + kAhead, count * index);
    prefetch(static_cast<const char*>(w.values) + begin * value + kAhead, count * value);
    out.values = widen_past(w.values, w.value, begin, count, w.nnz, values);
    out.count = count;
    c = {c.at + count, out.cols[count - 1] + int64_t{1}};
    return true;
  }

  bool close(int64_t row, int64_t at) const { return at == w.offset(row + 1) - w.offset(row); }
};

// Two to four rows of x: a row of W is checked, then met in one go, its values widened as they come.
template <Dtype D>
inline int64_t fours_run(const Linear& a, const float* x, const CsrView& w, int64_t begin, int64_t end) {
  constexpr int64_t kRows = 16;
  const Decoder decoder{w};
  alignas(64) float strips[kRows * 4];
  for (int64_t row = begin; row < end; row += kRows) {
    const int64_t count = end - row < kRows ? end - row : kRows;
    for (int64_t r = 0; r < count; ++r) {
      if (!decoder.open(row + r)) return row + r;
      const int64_t first = w.offset(row + r), length = w.offset(row + r + 1) - first;
      const int32_t* cols = static_cast<const int32_t*>(w.col) + first;
      if (!columns_ok(cols, length, 0, w.k)) return row + r;
      const void* values = static_cast<const char*>(w.values) + first * dtype_bytes(D);
      F32x4::store(strips + 4 * r, add_fours<D, kAhead>(values, cols, length, x, F32x4::zero()));
    }
    store_strip(a, nullptr, strips, 4, 0, a.m, row, count);
  }
  return -1;
}

Plan plan(const Linear& a, const CsrView&) { return a.m > kRowsDirect ? panel_plan(a, false) : rows_plan(a); }

void pack(const Args& a, int64_t begin, int64_t end) { pack_x(a.dense, a.plan, a.packed, begin, end); }

int64_t run(const Args& a, int64_t begin, int64_t end, void* scratch) {
  const Decoder decoder{a.weight};
  if (a.plan.chunk_rows != 1) return panels_run(a.dense, a.plan, a.packed, nullptr, decoder, begin, end, scratch);
  if (a.plan.tile != 4 || a.weight.index != Dtype::i32)
    return rows_run(a.dense, a.plan, a.packed, nullptr, decoder, begin, end);
  switch (a.weight.value) {
    case Dtype::bf16: return fours_run<Dtype::bf16>(a.dense, a.packed, a.weight, begin, end);
    case Dtype::f16: return fours_run<Dtype::f16>(a.dense, a.packed, a.weight, begin, end);
    default: return fours_run<Dtype::f32>(a.dense, a.packed, a.weight, begin, end);
  }
}

}  // namespace
}  // namespace sparsecore::spmm_csr
