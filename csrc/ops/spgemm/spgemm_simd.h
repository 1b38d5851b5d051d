// SPDX-License-Identifier: Apache-2.0
// spgemm's tasks, for every ISA: rows and parts of rows, counted, filled, and summed into columns that are
// given. `Lanes` has the verbs that differ.
#pragma once
#include "ops/spgemm/spgemm_masked.h"

namespace sparsecore::spgemm {
namespace {

inline int64_t products_of(const Args& a, int64_t row) { return a.work[row + 1] - a.work[row]; }

// fn(first word, past the last) for every window of a task's words.
template <class Fn>
bool windows(const Args& a, const Task& t, const Fn& fn) {
  const int64_t end = t.word_end > 0 ? t.word_end : word_count(a.b.k);
  for (int64_t w = t.word_begin; w < end; w += a.window)
    if (!fn(w, w + a.window < end ? w + a.window : end)) return false;
  return true;
}

// A row that is one row of B, scaled.
template <class Index>
bool is_scaled(const Args& a, const Rows<Index>& m, int64_t row) {
  return a.strict && m.crow[row + 1] - m.crow[row] == 1;
}

// Past the last of rows from `row` on that are lists of columns and lie staged together, so that no
// row waits for its own stores.
template <class Lanes>
int64_t listed_end(const Args& a, const Task& t, int64_t row) {
  int64_t stop = row;
  if (!lists_rows(a) || t.word_end > 0 || a.window != word_count(a.b.k)) return stop;
  while (stop < t.end && products_of(a, stop) <= Lanes::kListed && a.work[stop + 1] - a.work[row] <= kStage) ++stop;
  return stop;
}

template <class Lanes, class Index>
void count(const Args& a, Task& t, void* memory) {
  const Scratch s(a, memory);
  const Rows<Index> m(a.a);
  Index* const counts = static_cast<Index*>(a.crow) + 1;
  const int64_t all = word_count(a.b.k);
  const bool part = t.word_end > 0;
  t.count = 0;
  for (int64_t row = t.begin; row < t.end;) {
    const int64_t stop = listed_end<Lanes>(a, t, row);
    if (row < stop) {
      stage_rows<Lanes, None, Index>(a, row, stop, s);
      for (const int32_t* columns = s.columns; row < stop; ++row) {
        const Row<Index, false> r(a, row, 0, all);
        const int64_t products = products_of(a, row), found = r.count_new(s, columns, products, r.stamp(s));
        t.count += found;
        counts[row] = static_cast<Index>(found);
        columns += products;
      }
      continue;
    }
    const int64_t products = products_of(a, row);
    int64_t found = 0;
    if (!part && (products == 0 || is_scaled(a, m, row))) {
      found = products;
    } else if (!part && products <= a.most_hashed) {
      Hashed hash(s, products);
      found = Row<Index, false>(a, row, 0, all).mark_hashed(hash);
      hash.clear();
    } else if (!part && a.window == all && a.sums == Sums::staged) {
      found = Row<Index, false>(a, row, 0, all).template count_staged<Lanes>(s);
    } else if (!part && a.window == all) {
      found = Row<Index, false>(a, row, 0, all).count(s.bits);
    } else {
      windows(a, t, [&](int64_t w0, int64_t w1) {
        found += Row<Index, true>(a, row, w0, w1).count(s.bits);
        return true;
      });
    }
    t.count += found;
    if (!part) counts[row] = static_cast<Index>(found);
    ++row;
  }
}

template <class Index>
int64_t offsets(const Args& a, Task* tasks, int64_t task_count) {
  Index* const crow = static_cast<Index*>(a.crow);
  int64_t total = 0;
  for (int64_t i = 0; i < task_count; ++i) {
    Task& t = tasks[i];
    if (t.word_end > 0)  // a part; the row's are at most n together
      crow[t.begin + 1] = static_cast<Index>(t.word_begin == 0 ? t.count : crow[t.begin + 1] + t.count);
    t.at = total;
    total += t.count;
  }
  if (total > (sizeof(Index) == 4 ? INT32_MAX : INT64_MAX)) return total;
  crow[0] = 0;
  for (int64_t row = 0; row < a.a.n; ++row) crow[row + 1] = static_cast<Index>(crow[row] + crow[row + 1]);
  return total;
}

// Moves sums into the columns of s.list[0, touched), which lie at col and whose bits are in s.
template <class Lanes, class T, class Index, bool Clip>
void take(const Row<Index, Clip>& r, const Scratch& s, int64_t touched, const Index* col, int64_t count, T* out) {
  T* const sums = static_cast<T*>(s.sums);
  if (count < 4 * touched) {
    Lanes::take(sums, r.begin * 64, col, count, out);
  } else {
    for (int64_t i = 0; i < touched; ++i) out = Lanes::take(sums + int64_t{64} * s.list[i], s.bits[s.list[i]], out);
  }
}

template <bool Checked, class T, class Index, bool Clip>
bool sum_ranks(const Row<Index, Clip>& r, const Scratch& s, int64_t count, T* out) {
  std::memset(static_cast<void*>(out), 0, static_cast<size_t>(count) * sizeof(T));
  return r.template sum_ranks<Checked>(s, out);
}

// Columns and sums of the row's window from the bits in `range`; returns how many.
template <class Lanes, class T, class Index, bool Clip>
int64_t fill_marked(const Row<Index, Clip>& r, const Scratch& s, typename Row<Index, Clip>::Range range, Index* col,
                    T* out) {
  const bool ranks = r.a.sums == Sums::ranks;
  const int64_t touched = Lanes::touched(s.bits + range.lo, range.hi - range.lo, s.list);
  int64_t found = 0;
  for (int64_t i = 0; i < touched; ++i) {
    const int64_t w = s.list[i] += static_cast<int32_t>(range.lo);
    const uint64_t bits = s.bits[w];
    s.base[w] = static_cast<int32_t>(found);
    Lanes::columns(bits, (r.begin + w) * 64, col + found);
    found += bit_count(bits);
  }
  if constexpr (kValues<T>) {
    if (ranks) sum_ranks<false>(r, s, found, out);
    else take<Lanes>(r, s, touched, col, found, out);
  }
  for (int64_t i = 0; i < touched; ++i) s.bits[s.list[i]] = 0;
  return found;
}

template <class Lanes, class T, class Index, bool Clip>
int64_t fill_window(const Row<Index, Clip>& r, const Scratch& s, Index* col, T* out) {
  typename Row<Index, Clip>::Range range{0, r.width};
  if (r.a.sums == Sums::ranks) r.template sum_dense<false, Lanes, None>(s, range);
  else if (Clip || r.a.sums != Sums::staged) r.template sum_dense<false, Lanes, T>(s, range);
  else r.template sum_staged<false, Lanes, T>(s);
  return fill_marked<Lanes>(r, s, range, col, out);
}

// The same for a whole row, whose products lie staged.
template <class Lanes, class T, class Index>
int64_t fill_listed(const Row<Index, false>& r, const Scratch& s, int64_t from, int64_t products, Index* col, T* out) {
  if constexpr (Lanes::kMerged > 0 && (kReal<T> || !kValues<T>)) {
    if (products <= Lanes::kMerged)
      return Lanes::merge(s.columns + from, static_cast<const T*>(s.factors) + from * kValues<T>,
                          static_cast<const T*>(s.elements) + from * kValues<T>, products, col, out);
  }
  const int64_t count = r.template sum_listed<T>(s, from, products);
  if (count <= Lanes::kSorted) {
    Lanes::unlist(s.listed, count, r.a.sorted, static_cast<T*>(s.sums), col, out);
    return count;
  }
  for (int64_t j = 0; j < count; ++j) s.bits[s.listed[j] >> 6] |= uint64_t{1} << (s.listed[j] & 63);
  return fill_marked<Lanes>(r, s, {0, r.width}, col, out);
}

template <class Lanes, class T, class Index>
int64_t fill_hashed(const Row<Index, false>& r, const Scratch& s, int64_t products, Index* col, T* out) {
  Hashed hash(s, products);
  r.mark_hashed(hash);
  if (r.a.sorted) sort_by_word(s.order, s.order + r.a.most_hashed, hash.count, r.width);
  int64_t found = 0;
  for (int64_t i = 0; i < hash.count; ++i) {
    const uint32_t at = static_cast<uint32_t>(s.order[i]);
    s.slot_base[at] = static_cast<int32_t>(found);
    Lanes::columns(s.slot_bits[at], static_cast<int64_t>(s.order[i] >> 32) * 64, col + found);
    found += bit_count(s.slot_bits[at]);
  }
  if constexpr (kValues<T>) {
    std::memset(static_cast<void*>(out), 0, static_cast<size_t>(found) * sizeof(T));
    r.template sum_hashed<false>(hash, out);
  }
  hash.clear();
  return found;
}

template <class Lanes, class T, class Index>
void fill(const Args& a, Task& t, void* memory) {
  const Scratch s(a, memory);
  const Rows<Index> m(a.a), b(a.b);
  Index* const counts = static_cast<Index*>(a.crow) + 1;
  const int64_t all = word_count(a.b.k);
  const bool part = t.word_end > 0;
  t.count = 0;
  for (int64_t row = t.begin; row < t.end;) {
    const int64_t stop = listed_end<Lanes>(a, t, row), first = a.work[row];
    if (row < stop) {
      stage_rows<Lanes, T, Index>(a, row, stop, s);
      for (; row < stop; ++row) {
        const int64_t at = t.at + t.count;
        const int64_t found =
            fill_listed<Lanes>(Row<Index, false>(a, row, 0, all), s, a.work[row] - first, products_of(a, row),
                               static_cast<Index*>(a.col) + at, static_cast<T*>(a.values) + (kValues<T> ? at : 0));
        t.count += found;
        if (!a.counted) counts[row] = static_cast<Index>(found);
      }
      continue;
    }
    const int64_t products = products_of(a, row), at = t.at + t.count;
    Index* const col = static_cast<Index*>(a.col) + at;
    T* const out = static_cast<T*>(a.values) + (kValues<T> ? at : 0);
    int64_t found = 0;
    if (products == 0) {
    } else if (!part && is_scaled(a, m, row)) {
      found = products;
      const int64_t p = m.crow[row], from = b.crow[m.col[p]];
      std::memcpy(col, b.col + from, static_cast<size_t>(products) * sizeof(Index));
      if constexpr (kValues<T>)
        for (int64_t j = 0; j < products; ++j)
          out[j] = madd(static_cast<const T*>(a.a.values)[p], static_cast<const T*>(a.b.values)[from + j], T{});
    } else if (!part && products <= a.most_hashed) {
      found = fill_hashed<Lanes>(Row<Index, false>(a, row, 0, all), s, products, col, out);
    } else if (!part && a.window == all) {
      found = fill_window<Lanes>(Row<Index, false>(a, row, 0, all), s, col, out);
    } else {
      windows(a, t, [&](int64_t w0, int64_t w1) {
        found +=
            fill_window<Lanes>(Row<Index, true>(a, row, w0, w1), s, col + found, kValues<T> ? out + found : nullptr);
        return true;
      });
    }
    t.count += found;
    if (!a.counted) counts[row] = static_cast<Index>(found);
    ++row;
  }
}

// Sums of the row's window into the columns col[0, count), which are checked to rise strictly within it.
template <class Lanes, class T, class Index, bool Clip>
bool values_window(const Row<Index, Clip>& r, const Scratch& s, const Index* col, int64_t count, T* out) {
  int64_t touched = 0, last = -1;
  bool good = true;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t c = col[j] - r.begin * 64, w = c >> 6;
    if (c <= last || w >= r.width || col[j] >= r.a.b.k) return false;
    if (touched == 0 || s.list[touched - 1] != w) {
      s.list[touched++] = static_cast<int32_t>(w);
      s.base[w] = static_cast<int32_t>(j);
    }
    s.bits[w] |= uint64_t{1} << (c & 63);
    last = c;
  }
  if (r.a.sums == Sums::ranks) {
    good = sum_ranks<true>(r, s, count, out);
  } else {
    typename Row<Index, Clip>::Range range;
    good = !Clip && r.a.sums == Sums::staged ? r.template sum_staged<true, Lanes, T>(s)
                                             : r.template sum_dense<true, Lanes, T>(s, range);
    if (good) take<Lanes>(r, s, touched, col, count, out);
  }
  for (int64_t i = 0; i < touched; ++i) s.bits[s.list[i]] = 0;
  return good;
}

template <class T, class Index>
bool values_hashed(const Row<Index, false>& r, const Scratch& s, const Index* col, int64_t count, int64_t most,
                   T* out) {
  Hashed hash(s, most);
  int64_t last = -1;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t c = col[j];
    if (c <= last || c >= r.a.b.k) return false;
    const int64_t before = hash.count, at = hash.template slot<true>(static_cast<int32_t>(c >> 6));
    if (hash.count > before) s.slot_base[at] = static_cast<int32_t>(j);
    s.slot_bits[at] |= uint64_t{1} << (c & 63);
    last = c;
  }
  std::memset(static_cast<void*>(out), 0, static_cast<size_t>(count) * sizeof(T));
  const bool good = r.template sum_hashed<true>(hash, out);
  hash.clear();
  return good;
}

template <class Lanes, class T, class Index>
int64_t values(const Args& a, const Task& t, void* memory) {
  const Scratch s(a, memory);
  const Rows<Index> c({a.a.n, 0, 0, a.crow, a.col, nullptr, a.a.index, a.a.value});
  const int64_t all = word_count(a.b.k);
  const bool part = t.word_end > 0;
  for (int64_t row = t.begin; row < t.end; ++row) {
    const int64_t from = c.crow[row], to = c.crow[row + 1], products = products_of(a, row);
    if (from < 0 || from > to || to > a.nnz || to - from > a.b.k) return row;
    const int64_t count = to - from, most = count > products ? count : products;
    const Index* col = c.col + from;
    T* out = static_cast<T*>(a.values) + from;
    if (most == 0) continue;
    if (!part && most <= a.most_hashed) {
      if (!values_hashed(Row<Index, false>(a, row, 0, all), s, col, count, most, out)) return row;
    } else if (!part && a.window == all) {
      if (!values_window<Lanes>(Row<Index, false>(a, row, 0, all), s, col, count, out)) return row;
    } else {
      for (int64_t j = 0; j < count; ++j)
        if (col[j] < 0 || col[j] >= a.b.k || (j > 0 && col[j] <= col[j - 1])) return row;
      int64_t at = first_from(col, 0, count, t.word_begin * 64);
      const int64_t end = part ? first_from(col, at, count, t.word_end * 64) : count;
      const bool good = windows(a, t, [&](int64_t w0, int64_t w1) {
        const int64_t next = first_from(col, at, end, w1 * 64);
        const bool right = values_window<Lanes>(Row<Index, true>(a, row, w0, w1), s, col + at, next - at, out + at);
        at = next;
        return right;
      });
      if (!good) return row;
    }
  }
  return -1;
}

template <class Lanes>
constexpr Kernel kernel_of(const char* name, cpu::Isa isa) {
  return {name,
          isa,
          [](const Args& a, int64_t begin, int64_t end) {
            return a.a.index == Dtype::i32 ? open_rows_of_a<int32_t>(a, begin, end)
                                           : open_rows_of_a<int64_t>(a, begin, end);
          },
          needs_words,
          [](const Args& a, int64_t begin, int64_t end, Found& found) {
            return a.a.index == Dtype::i32 ? open_rows_of_b<int32_t>(a, begin, end, found)
                                           : open_rows_of_b<int64_t>(a, begin, end, found);
          },
          plan<Lanes>,
          [](const Args& a, Task& t, void* scratch) {
            a.a.index == Dtype::i32 ? count<Lanes, int32_t>(a, t, scratch) : count<Lanes, int64_t>(a, t, scratch);
          },
          [](const Args& a, Task* tasks, int64_t count) {
            return a.a.index == Dtype::i32 ? offsets<int32_t>(a, tasks, count) : offsets<int64_t>(a, tasks, count);
          },
          [](const Args& a, Task& t, void* scratch) {
            typed(a.a, [&](auto type, auto index) {
              fill<Lanes, typename decltype(type)::Type, typename decltype(index)::Type>(a, t, scratch);
            });
          },
          [](const Args& a, const Task& t, void* scratch) {
            int64_t bad = -1;
            typed(a.a, [&](auto type, auto index) {
              using T = typename decltype(type)::Type;
              if constexpr (kValues<T>) bad = values<Lanes, T, typename decltype(index)::Type>(a, t, scratch);
            });
            return bad;
          },
          [](const Gradients& g, int64_t begin, int64_t end, void* scratch) {
            int64_t bad = -1;
            typed(g.g, [&](auto type, auto index) {
              using T = typename decltype(type)::Type;
              if constexpr (kValues<T>) bad = for_a<T, typename decltype(index)::Type>(g, begin, end, scratch);
            });
            return bad;
          },
          [](const Gradients& g, int64_t begin, int64_t end, void* scratch) {
            int64_t bad = -1;
            typed(g.g, [&](auto type, auto index) {
              using T = typename decltype(type)::Type;
              if constexpr (kValues<T>) bad = for_b<T, typename decltype(index)::Type>(g, begin, end, scratch);
            });
            return bad;
          }};
}

}  // namespace
}  // namespace sparsecore::spgemm
