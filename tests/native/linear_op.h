// SPDX-License-Identifier: Apache-2.0
// What adapters of weight ops, y = x · Wᵀ + bias, share.
//
//   x [m, x_stride], y [m, y_stride], bias [n] or absent, integer k
//   tile, k_block   override the plan's where it blocks panels of x
//   pieces          row ranges that run is called for (1)
//   row             run for this row alone
#pragma once
#include <algorithm>

#include "core/linear.h"
#include "core/partition.h"
#include "harness.h"

namespace sparsecore::native {

inline Linear linear(const Call& call, int64_t n) {
  const Array &x = call.array("x"), &y = call.array("y");
  if (x.shape.size() != 2 || y.shape.size() != 2 || y.shape[0] != x.shape[0] || y.shape[1] < n ||
      x.shape[1] < call.integer("k") || y.dtype != x.dtype)
    throw std::invalid_argument("x, y, k and n do not fit together");
  return {x.shape[0], n, call.integer("k"), x.data, x.shape[1], call.data_or_null("bias"), y.data, y.shape[1], x.dtype};
}

// `offset(row)` counts nonzeros before row; column blocks are multiples of `unit`.
template <class Args, class Kernel, class Offset>
Outcome run_linear(const Kernel& kernel, Args args, const Call& call, const Offset& offset, int64_t unit = 1) {
  Plan& plan = args.plan;
  const Linear& d = args.dense;
  plan = kernel.plan(d, args.weight);
  const bool panels = plan.tile > 0 && plan.chunk_rows > 1;
  const int64_t tile = call.integer("tile", plan.tile);
  if (panels && tile < plan.tile) {
    plan.tile = tile;
    int64_t last = d.m % tile == 0 ? 0 : 4;  // width of the last panel
    while (last < d.m % tile) last *= 2;
    plan.packed_floats = (d.m / tile * tile + last) * d.k;
  }
  if (panels && !plan.dense_tiles)
    plan.k_block = std::min(plan.k_block, (call.integer("k_block", plan.k_block) + unit - 1) / unit * unit);

  const Fenced packed(plan.packed_floats * static_cast<int64_t>(sizeof(float)), sizeof(float));
  args.packed = static_cast<float*>(packed.data());
  for (int64_t p = 0; p < pack_pieces(plan, d.k); ++p) kernel.pack(args, p, p + 1);

  const int64_t only = call.integer("row", -1), last_row = only < 0 ? d.n : only + 1;
  const int64_t pieces = only < 0 ? call.integer("pieces", 1) : 1;
  int64_t bad = -1, begin = only < 0 ? 0 : only;
  bool intact = true;
  for (int64_t p = 1; p <= pieces; ++p) {
    const int64_t cut = p == pieces ? last_row : piece_begin(d.n, p, pieces, 4, 4, offset), end = std::max(cut, begin);
    const Fenced scratch(plan.scratch_bytes, 64);
    const int64_t row = kernel.run(args, begin, end, scratch.data());
    if (row >= 0 && bad < 0) bad = row;
    intact &= scratch.intact();
    begin = end;
  }
  return {{"bad_row", bad},
          {"intact", intact && packed.intact()},
          {"tile", plan.tile},
          {"k_block", plan.k_block},
          {"dense_tiles", plan.dense_tiles},
          {"packed_floats", plan.packed_floats},
          {"scratch_bytes", plan.scratch_bytes}};
}

inline const std::vector<Dtype>& float_dtypes() {
  static const std::vector<Dtype> all = {Dtype::f32, Dtype::bf16, Dtype::f16};
  return all;
}

// Small numbers that every float type holds: sums of a few hundred products are exact in fp32.
inline void fill_small(Random& random, void* data, Dtype d, int64_t count) {
  if (d == Dtype::i8)
    for (int64_t i = 0; i < count; ++i) static_cast<int8_t*>(data)[i] = static_cast<int8_t>(below(random, 9) - 4);
  else
    for (int64_t i = 0; i < count; ++i) store_f32(data, d, i, static_cast<float>(below(random, 9) - 4) / 4);
}

// Mostly small; now and then past the rows and columns that kernels take at once.
inline int64_t sample_size(Random& random, int64_t usual) { return below(random, random() % 8 == 0 ? 700 : usual); }

// Adds x, y, bias, k and overrides that reach every plan; m is 1 in a third of samples.
inline void sample_linear(Random& random, Sample& s, int64_t n, int64_t k) {
  const int64_t m = below(random, 3) == 0 ? 1 : n * k > 20000 ? 1 + below(random, 6) : 1 + sample_size(random, 70);
  const Dtype d = float_dtypes()[below(random, 3)];
  const int64_t x_stride = k + below(random, 3), y_stride = n + below(random, 3);
  fill_small(random, s.add<void>("x", d, {m, x_stride}), d, m * x_stride);
  if (random() & 1) fill_small(random, s.add<void>("bias", d, {n}), d, n);
  s.add<void>("y", d, {m, y_stride}, true);
  s.call.integers = {{"k", k}, {"pieces", 1 + below(random, 4)}};
  if (random() & 1) s.call.integers["tile"] = int64_t{4} << below(random, 5);
  if (random() & 1) s.call.integers["k_block"] = 1 + below(random, 100);
}

}  // namespace sparsecore::native
