// SPDX-License-Identifier: Apache-2.0
// Where products of a row of C are merged as they are made. Both tables hold columns directly where these span little,
// else by a hash:
//
//   ColumnSet   direct  a bit a column, 32 a word: sorted by being read     hash  a word a column: sorted when read
//   SumTable    direct  the slot of column c is c - base                    hash  sums beside the slots' columns
#pragma once
#include "cuda/convert.h"
#include "cuda/hash.h"
#include "cuda/sort.h"
#include "ops/spgemm/spgemm_cuda_walk.h"

namespace sparsecore::spgemm {

// A power of 2 that `count` numbers fill to three quarters at most.
SPARSECORE_DEVICE int64_t slots_for(int64_t count) {
  int64_t slots = 16;
  while (slots * 3 < count * 4) slots *= 2;
  return slots;
}

template <class Team>
struct ColumnSet {
  unsigned* words;  // shared
  int used = 0;     // of them
  int64_t base = 0;
  bool direct = false;

  SPARSECORE_DEVICE void open(Columns window, int slots, bool directly) {
    Team::sync();  // the row before has been read
    direct = directly;
    base = window.lo;
    used = direct ? static_cast<int>((window.hi - window.lo + 31) / 32) : slots;
    for (int i = Team::rank(); i < used; i += Team::size) words[i] = direct ? 0 : kEmpty;
    Team::sync();
  }

  // Whether the column is new. By any threads at once.
  SPARSECORE_DEVICE bool add(unsigned column) const {
    bool fresh = false;
    if (direct) {
      const unsigned at = column - static_cast<unsigned>(base), bit = 1u << at % 32;
      if (at / 32 < static_cast<unsigned>(used) && !(atomic_load(words + at / 32) & bit))
        fresh = !(atomic_or(words + at / 32, bit) & bit);
    } else {
      Hash{words, static_cast<unsigned>(used)}.enter(column, fresh);
    }
    return fresh;
  }

  // Writes the columns to out[0, room), rising if they lie direct or `sorted`; returns how many there are.
  template <class Index>
  SPARSECORE_DEVICE int64_t write(Index* out, int64_t room, bool sorted) const {
    int64_t count = 0;
    Team::sync();
    for (int first = 0; first < used; first += Team::size) {
      const int i = first + Team::rank();
      unsigned word = i < used ? words[i] : direct ? 0 : kEmpty;
      const int here = direct ? __popc(word) : word != kEmpty;
      int total;
      int64_t at = count + Team::exclusive_sum(here, total);
      count += total;
      Team::sync();  // the words have been read: what is packed lies where they lay or before
      if (!direct) {
        if (here) words[at] = word;
        continue;
      }
      for (; word != 0; word &= word - 1, ++at)
        if (at < room) out[at] = static_cast<Index>(base + i * 32 + __ffs(static_cast<int>(word)) - 1);
    }
    if (direct) return count;
    if (sorted) {
      int power = 1;
      while (power < count) power *= 2;
      Team::sync();
      for (int i = static_cast<int>(count) + Team::rank(); i < power; i += Team::size) words[i] = kEmpty;
      sort<Team>(words, power);
    }
    Team::sync();
    for (int64_t i = Team::rank(); i < count && i < room; i += Team::size) out[i] = static_cast<Index>(words[i]);
    return count;
  }
};

template <class Team, class Sum>
struct SumTable {
  unsigned* key;  // [slots] each, shared or global
  Sum* sums;
  int64_t slots;
  int64_t used = 0, base = 0;
  bool direct = false;

  // The columns col[first, last), at most 3/4 of the slots, with sums of 0. False: outside [0, n), or `rising` and they
  // do not.
  template <class Index>
  SPARSECORE_DEVICE bool open(const Index* col, int64_t first, int64_t last, int64_t n, bool rising) {
    Team::sync();  // the row before has been read
    const int64_t lo = col[first], hi = col[last - 1];
    used = slots_for(last - first);
    direct = rising && lo >= 0 && lo <= hi && hi < n && hi - lo < 2 * used && hi - lo < slots;
    base = lo;
    if (direct) used = hi - lo + 1;
    for (int64_t i = Team::rank(); i < used; i += Team::size) {
      key[i] = kEmpty;
      sums[i] = Sum{0};
    }
    Team::sync();
    bool good = true;
    for (int64_t i = first + Team::rank(); i < last; i += Team::size) {
      const int64_t c = col[i];
      good &= static_cast<uint64_t>(c) < static_cast<uint64_t>(n) && (!rising || i == first || col[i - 1] < c);
      if (!good) continue;
      bool fresh;
      if (!direct) Hash{key, static_cast<unsigned>(used)}.enter(static_cast<unsigned>(c), fresh);
      else if (c >= base && c - base < used) atomic_swap_if(key + (c - base), kEmpty, static_cast<unsigned>(c));
    }
    Team::sync();
    return good;
  }

  SPARSECORE_DEVICE int find(unsigned column) const {
    if (!direct) return Hash{key, static_cast<unsigned>(used)}.find(column);
    const int64_t at = static_cast<int64_t>(column) - base;
    return at >= 0 && at < used && key[at] == column ? static_cast<int>(at) : -1;
  }
};

}  // namespace sparsecore::spgemm
