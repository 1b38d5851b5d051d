// SPDX-License-Identifier: Apache-2.0
// What adapters of conversions share.
//
//   pieces   row ranges that a kernel is called for (1)
//   row      run for this row alone
#pragma once
#include <algorithm>

#include "core/bitmap.h"
#include "harness.h"

namespace sparsecore::native {

// run(begin, end) over rows [0, n), which returns -1 or a bad row.
template <class Run>
Outcome run_rows(const Call& call, int64_t n, const Run& run) {
  const int64_t only = call.integer("row", -1);
  if (only >= 0) return {{"bad_row", run(only, only + 1)}, {"intact", 1}};
  const int64_t pieces = call.integer("pieces", 1);
  int64_t bad = -1;
  for (int64_t p = pieces; p-- > 0;) {  // backwards: a range leaves what lies after it alone
    const int64_t row = run(n * p / pieces, n * (p + 1) / pieces);
    if (row >= 0 && bad < 0) bad = row;
  }
  return {{"bad_row", bad}, {"intact", 1}};
}

// Mostly small; now and then past the columns that kernels take at once.
inline int64_t row_or_column_count(Random& random, int64_t usual) {
  return below(random, random() % 8 == 0 ? 700 : usual);
}

// Adds bitmask [n, 8 * words] and row_offsets [n + 1]; returns how many bits are set.
inline int64_t sample_bitmap(Random& random, Sample& s, int64_t n, int64_t k) {
  const int64_t keep = below(random, 101), words = bitmap_words(k);
  auto* bits = s.add<unsigned char>("bitmask", Dtype::i8, {n, 8 * words});
  auto* offsets = s.add<int64_t>("row_offsets", Dtype::i64, {n + 1});
  std::fill_n(bits, n * 8 * words, static_cast<unsigned char>(0));
  offsets[0] = 0;
  for (int64_t row = 0; row < n; ++row) {
    const int64_t here = below(random, 4) == 0 ? below(random, 101) : keep;
    offsets[row + 1] = offsets[row];
    for (int64_t c = 0; c < k; ++c)
      if (below(random, 100) < here) {
        bits[row * 8 * words + c / 8] |= static_cast<unsigned char>(1 << c % 8);
        ++offsets[row + 1];
      }
  }
  s.call.integers = {{"k", k}, {"pieces", 1 + below(random, 4)}};
  return offsets[n];
}

// bitmask and row_offsets of a call, with `nnz` values.
inline BitmapView bitmap_pattern(const Call& call, int64_t nnz) {
  const Array &mask = call.array("bitmask"), &offsets = call.array("row_offsets");
  const int64_t n = offsets.size() - 1, k = call.integer("k");
  if (n < 0 || mask.size() != n * 8 * bitmap_words(k))
    throw std::invalid_argument("bitmask, row_offsets and k do not fit together");
  return {n, k, nnz, mask.as<uint8_t>(), offsets.as<int64_t>(), nullptr, nullptr, Dtype::f32};
}

// The same with values, scaled when they are int8.
inline BitmapView bitmap_weight(const Call& call) {
  const Array& values = call.array("values");
  BitmapView w = bitmap_pattern(call, values.size());
  w.values = values.data;
  w.value = values.dtype;
  w.scales = static_cast<const float*>(call.data_or_null("scales"));
  if ((w.value == Dtype::i8) != (w.scales != nullptr))
    throw std::invalid_argument("values and scales do not fit together");
  return w;
}

// Registers every kernel of a table; run(kernel, call), sample(random).
template <class Table, class Run, class MakeSample>
bool register_conversion(const char* op, const Table& table, Run run, MakeSample sample) {
  for (const auto& kernel : table)
    variants().push_back(
        {op, kernel.name, kernel.isa, [&kernel, run](const Call& c) { return run(kernel, c); }, sample});
  return true;
}

}  // namespace sparsecore::native
