// SPDX-License-Identifier: Apache-2.0
// Cuts rows into pieces of equal work: nonzeros plus a constant per row.
#pragma once
#include <cstdint>

namespace sparsecore {

// First row of piece `piece` of `pieces`. `offset(row)` is the nondecreasing count of nonzeros before
// `row`; an untrusted one that falls still gives rows in [0, n]. Cost of a row beside its nonzeros:
// `row_cost` nonzeros' worth. Rows come in multiples of `align` (a cache line of y).
template <class Offset>
int64_t piece_begin(int64_t n, int64_t piece, int64_t pieces, int64_t row_cost, int64_t align, const Offset& offset) {
  if (piece <= 0) return 0;
  if (piece >= pieces) return n;
  const auto work = [&](int64_t row) {
    return static_cast<double>(offset(row)) + static_cast<double>(row) * static_cast<double>(row_cost);
  };
  const double total = work(n), share = total / static_cast<double>(pieces),
               target = share * static_cast<double>(piece);
  // Like rows, as of a pruned weight: an even cut serves, and a search would wait for memory at every probe.
  int64_t lo = n / pieces * piece + n % pieces * piece / pieces, hi = lo;
  const double off = work(lo) - target;
  if (off > share / 8 || off < -share / 8) lo = 0, hi = n;
  while (lo < hi) {
    const int64_t mid = lo + (hi - lo) / 2;
    if (work(mid) < target) lo = mid + 1;
    else hi = mid;
  }
  const int64_t aligned = (lo + align / 2) / align * align;
  return aligned < n ? aligned : n;
}

}  // namespace sparsecore
