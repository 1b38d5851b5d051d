// SPDX-License-Identifier: Apache-2.0
// The products of a row of A with B, by a team of threads, a product a thread:
//
//   row of A            2       5   7         a batch: as many elements of A's row as the team has threads
//   rows of B        x x x x    x   x x x     their lengths 4 1 3, summed before each: 0 4 5
//   threads          0 1 2 3    4   5 6 7     product i is of the last element that has i or fewer before it
//
// So threads are busy however short B's rows are, and products are met in the order of A's row. Index arrays are
// untrusted: what breaks an invariant has no products, and each() says that it met some.
#pragma once
#include "cuda/team.h"
#include "ops/spgemm/spgemm.h"

namespace sparsecore::spgemm {

using namespace cuda;

// [lo, hi); what a whole row's are.
struct Columns {
  int64_t lo = INT64_MIN, hi = INT64_MAX;
  SPARSECORE_DEVICE bool hold(int64_t c) const { return c >= lo && c < hi; }
};

template <class Index>
SPARSECORE_DEVICE const Index* offsets_of(const CsrView& w) {
  return static_cast<const Index*>(w.crow);
}
template <class Index>
SPARSECORE_DEVICE const Index* columns_of(const CsrView& w) {
  return static_cast<const Index*>(w.col);
}

// First of rising items [from, to) that is not below `limit`.
template <class Index>
SPARSECORE_DEVICE int64_t first_from(const Index* items, int64_t from, int64_t to, int64_t limit) {
  while (from < to) {
    const int64_t middle = from + (to - from) / 2;
    if (items[middle] < limit) from = middle + 1;
    else to = middle;
  }
  return from;
}

// Elements of a row: [begin, end), none where its offsets are wrong.
struct Elements {
  int64_t begin = 0, end = 0;
  bool good = true;
};
template <class Index>
SPARSECORE_DEVICE Elements elements_of(const CsrView& w, int64_t row) {
  const int64_t begin = offsets_of<Index>(w)[row], end = offsets_of<Index>(w)[row + 1];
  return begin >= 0 && begin <= end && end <= w.nnz ? Elements{begin, end} : Elements{0, 0, false};
}

template <class Team, class Index>
struct Walk {
  CsrView a, b;
  bool strict;        // columns of B rise strictly within rows
  int64_t* before;  // shared, [Team::size] each: products before an element of the batch,
  int64_t* begin;     // and where those of product 0 would lie in B

  static constexpr int64_t shared_bytes = int64_t{Team::size} * 16;

  // The row of B that element p of A asks for.
  SPARSECORE_DEVICE Elements row_of_b(int64_t p) const {
    const int64_t k = columns_of<Index>(a)[p];
    return static_cast<uint64_t>(k) < static_cast<uint64_t>(b.n) ? elements_of<Index>(b, k) : Elements{0, 0, false};
  }

  // What the row's products span: all columns where B's rows do not rise.
  SPARSECORE_DEVICE Columns span(int64_t row) const {
    if (!strict) return {0, b.k};
    int64_t lo = b.k, last = -1;
    const Elements of_a = elements_of<Index>(a, row);
    for (int64_t p = of_a.begin + Team::rank(); p < of_a.end; p += Team::size) {
      const Elements of_b = row_of_b(p);
      if (of_b.begin == of_b.end) continue;
      const int64_t first = columns_of<Index>(b)[of_b.begin], final = columns_of<Index>(b)[of_b.end - 1];
      lo = first < lo ? first : lo;
      last = final > last ? final : last;
    }
    return {Team::least(lo), 1 - Team::least(-last)};
  }

  // use(here, p, q, column) by all threads together, in rounds: `here` for threads that have a product, of a.values[p]
  // and b.values[q], in a column of the window. False once a thread met what no CSR has.
  template <class Use>
  SPARSECORE_DEVICE bool each(int64_t row, Columns window, const Use& use) const {
    const Elements of_a = elements_of<Index>(a, row);
    const bool clip = strict && (window.lo > 0 || window.hi < b.k);
    bool good = of_a.good;
    for (int64_t first = of_a.begin; first < of_a.end; first += Team::size) {
      const int64_t mine = first + Team::rank();
      Elements of_b = mine < of_a.end ? row_of_b(mine) : Elements{};
      good &= of_b.good;
      if (clip) {
        of_b.begin = first_from(columns_of<Index>(b), of_b.begin, of_b.end, window.lo);
        of_b.end = first_from(columns_of<Index>(b), of_b.begin, of_b.end, window.hi);
      }
      int64_t total;
      const int64_t sum = Team::exclusive_sum(of_b.end - of_b.begin, total);
      Team::sync();  // the batch before has been read
      before[Team::rank()] = sum;
      begin[Team::rank()] = of_b.begin - sum;
      Team::sync();
      for (int64_t base = 0; base < total; base += Team::size) {
        const int64_t i = base + Team::rank();
        int element = 0;
#pragma unroll
        for (int half = Team::size / 2; half > 0; half /= 2)
          if (before[element + half] <= i) element += half;
        const int64_t q = begin[element] + i, column = i < total ? columns_of<Index>(b)[q] : 0;
        const bool inside = static_cast<uint64_t>(column) < static_cast<uint64_t>(b.k);
        good &= inside | (i >= total);
        use(i < total && inside && window.hold(column), first + element, q, static_cast<unsigned>(column));
      }
    }
    return good;
  }
};

}  // namespace sparsecore::spgemm
