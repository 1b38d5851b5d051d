// SPDX-License-Identifier: Apache-2.0
// spgemm's walks over A and B, for every ISA: opening, and one row's pattern and sums in a window of words.
#pragma once
#include "ops/spgemm/spgemm_scratch.h"

namespace sparsecore::spgemm {
namespace {

constexpr int64_t kAhead = 8;
constexpr int64_t kNear = 2;

template <class Index>
struct Rows {
  const Index* crow;
  const Index* col;
  explicit Rows(const CsrView& w) : crow(static_cast<const Index*>(w.crow)), col(static_cast<const Index*>(w.col)) {}
};

inline uint32_t as_unsigned(int32_t c) { return static_cast<uint32_t>(c); }
inline uint64_t as_unsigned(int64_t c) { return static_cast<uint64_t>(c); }

// Whether rows [begin, end) of B are right, by vectors and without a branch at the end of each row.
template <class Index>
bool check_rows_of_b(const Args& a, int64_t begin, int64_t end, Found& found) {
  const Rows<Index> b(a.b);
  const int64_t from = b.crow[begin], to = b.crow[end];
  if (from < 0 || from > to || to > a.b.nnz) return false;
  const auto width = as_unsigned(static_cast<Index>(a.b.k));
  Index wrong = 0, drops = 0, allowed = 0;  // columns may drop where a row begins
  for (int64_t row = begin; row < end; ++row) wrong |= b.crow[row] > b.crow[row + 1];
  for (int64_t q = from; q < to; ++q) wrong |= as_unsigned(b.col[q]) >= width;
  if (wrong) return false;
  for (int64_t q = from + 1; q < to; ++q) drops += b.col[q] <= b.col[q - 1];
  for (int64_t row = begin; row < end; ++row) {
    const int64_t q = b.crow[row];
    allowed += q > from && q < b.crow[row + 1] && b.col[q] <= b.col[q - 1];
  }
  found.strict &= drops == allowed;
  return true;
}

template <class Index>
int64_t open_rows_of_b(const Args& a, int64_t begin, int64_t end, Found& found) {
  const Rows<Index> b(a.b);
  const bool listed = a.words.word != nullptr;
  if (!listed && check_rows_of_b<Index>(a, begin, end, found)) return -1;
  const uint64_t width = static_cast<uint64_t>(a.b.k);
  bool strict = true;
  int64_t words = 0, at = 0;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t from = b.crow[row], to = b.crow[row + 1];
    if (from < 0 || from > to || to > a.b.nnz) return row;
    if (row == begin) at = from - 1;
    const int64_t before = at;
    int64_t last = -1, word = -1;
    uint64_t bits = 0;
    for (int64_t p = from; p < to; ++p) {
      const int64_t c = b.col[p];
      if (static_cast<uint64_t>(c) >= width) return row;
      strict &= c > last;
      last = c;
      const bool other = c >> 6 != word;
      word = c >> 6;
      at += other;
      bits = (other ? 0 : bits) | uint64_t{1} << (c & 63);
      if (!listed) continue;
      a.words.word[at] = static_cast<int32_t>(word);
      a.words.bits[at] = bits;
    }
    if (!listed) continue;
    a.words.rows[row] = {before + 1, at - before};
    words += at - before;
  }
  found.strict &= strict;
  found.words += words;
  return -1;
}

// The first of rows [begin, end) of A that is bad.
template <class Index>
int64_t bad_row_of_a(const Args& a, int64_t begin, int64_t end) {
  const Rows<Index> m(a.a);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t from = m.crow[row], to = m.crow[row + 1];
    if (from < 0 || from > to || to > a.a.nnz) return row;
    for (int64_t p = from; p < to; ++p)
      if (as_unsigned(m.col[p]) >= as_unsigned(static_cast<Index>(a.b.n))) return row;
  }
  return -1;
}

// B's offsets are not checked yet. Short rows are summed by differences of a running sum, so that none ends in a
// branch.
template <class Index>
int64_t open_rows_of_a(const Args& a, int64_t begin, int64_t end) {
  const Rows<Index> m(a.a), b(a.b);
  const uint64_t height = static_cast<uint64_t>(a.b.n);
  uint64_t before[kStage + 1];  // products before each element; offsets may be wild, and wrap
  before[0] = 0;
  for (int64_t row = begin, next; row < end; row = next) {
    const int64_t from = m.crow[row];
    if (from < 0 || from > a.a.nnz) return row;
    for (next = row; next < end && m.crow[next + 1] >= m.crow[next] && m.crow[next + 1] <= from + kStage;) ++next;
    const bool alone = next == row;
    next += alone;
    const int64_t to = m.crow[next];
    if (from > to || to > a.a.nnz) return bad_row_of_a<Index>(a, row, next);
    uint64_t products = 0;
    for (int64_t p = from; p < to; ++p) {
      const int64_t k = m.col[p];
      if (static_cast<uint64_t>(k) >= height) return bad_row_of_a<Index>(a, row, next);
      products += static_cast<uint64_t>(b.crow[k + 1]) - static_cast<uint64_t>(b.crow[k]);
      if (!alone) before[p - from + 1] = products;
    }
    if (alone) a.work[next] = static_cast<int64_t>(products);
    else
      for (int64_t r = row; r < next; ++r)
        a.work[r + 1] = static_cast<int64_t>(before[m.crow[r + 1] - from] - before[m.crow[r] - from]);
  }
  return -1;
}

// First of rising items[from, to) that is not below `limit`.
template <class Item>
inline int64_t first_from(const Item* items, int64_t from, int64_t to, int64_t limit) {
  while (from < to) {
    const int64_t middle = from + (to - from) / 2;
    if (items[middle] < limit) from = middle + 1;
    else to = middle;
  }
  return from;
}

// One row of A against B. Clip: only columns of words [begin, begin + width) count.
template <class Index, bool Clip>
struct Row {
  const Args& a;
  const Rows<Index> m, b;
  int64_t row, begin, width;

  Row(const Args& args, int64_t r, int64_t w0, int64_t w1)
      : a(args), m(args.a), b(args.b), row(r), begin(Clip ? w0 : 0), width(Clip ? w1 - w0 : word_count(args.b.k)) {}

  // A word's place in the window.
  bool outside(int64_t word) const { return Clip && static_cast<uint64_t>(word) >= static_cast<uint64_t>(width); }

  // What a walk reads of a row of B, fetched kAhead elements of A before it is needed: rows of B are met in no
  // order, and short ones end in a mispredicted branch that hides nothing. Where they are long, the CPU sees by
  // itself where it goes (to fetch 8 lines of each array: no gain in collaboration graphs).
  void fetch_words(int64_t k) const {
    const int64_t q = a.words.rows[k].first;
    __builtin_prefetch(a.words.word + q);
    __builtin_prefetch(a.words.bits + q);
    __builtin_prefetch(a.words.bits + q + 8);
  }
  template <class T>
  void fetch_elements(int64_t q) const {
    __builtin_prefetch(b.col + q);
    if (!kValues<T>) return;
    __builtin_prefetch(static_cast<const T*>(a.b.values) + q);
    if (sizeof(T) == 4) return;
    __builtin_prefetch(static_cast<const T*>(a.b.values) + q + 64 / sizeof(T));
  }

  // The rest of row k of B's values, up to 2 KB. Where B's rows of 100 come from the last cache (5.6 MB in fp64), this
  // and words side by side took a product from 59 to 39 ms in fp32 and from 101 to 68 in fp64.
  template <class T>
  void fetch_rest(int64_t k) const {
    const char* const at = reinterpret_cast<const char*>(static_cast<const T*>(a.b.values) + b.crow[k]);
    const int64_t bytes = (b.crow[k + 1] - b.crow[k]) * static_cast<int64_t>(sizeof(T));
    for (int64_t i = 128; i < bytes && i < 2048; i += 64) __builtin_prefetch(at + i);
  }

  // each(p, first entry, past the last, first element of B, past the last) for each element p of the row of A.
  template <class Fetch, class Each>
  bool over(const Fetch& fetch, const Each& each) const {
    for (int64_t p = m.crow[row]; p < m.crow[row + 1]; ++p) {
      if (p + kAhead < a.a.nnz) fetch(m.col[p + kAhead]);
      const int64_t k = m.col[p];
      const WordRow words = a.words.rows[k];
      int64_t q0 = b.crow[k], q1 = b.crow[k + 1], e0 = words.first, e1 = words.first + words.count;
      if (Clip && a.strict) {
        e0 = first_from(a.words.word, e0, e1, begin);
        e1 = first_from(a.words.word, e0, e1, begin + width);
        q0 = first_from(b.col, q0, q1, begin * 64);
        q1 = first_from(b.col, q0, q1, (begin + width) * 64);
      }
      if (e0 < e1 && !each(p, e0, e1, q0, q1)) return false;
    }
    return true;
  }

  // Words touched in bits: the range [lo, hi), whole where B's rows do not rise.
  struct Range {
    int64_t lo, hi;
  };

  // Marks and counts; leaves bits as they were.
  int64_t count(uint64_t* bits) const {
    const auto words = [this](int64_t k) { fetch_words(k); };
    int64_t found = 0;
    over(words, [&](int64_t, int64_t e0, int64_t e1, int64_t, int64_t) {
      for (int64_t e = e0; e < e1; ++e) {
        const int64_t w = a.words.word[e] - begin;
        if (outside(w)) continue;
        const uint64_t more = a.words.bits[e], old = bits[w];
        found += bit_count(more & ~old);
        bits[w] = old | more;
      }
      return true;
    });
    if (found == 0) return 0;
    if (found * 8 > width) {
      std::memset(bits, 0, static_cast<size_t>(width) * 8);
    } else {
      over(words, [&](int64_t, int64_t e0, int64_t e1, int64_t, int64_t) {
        for (int64_t e = e0; e < e1; ++e)
          if (const int64_t w = a.words.word[e] - begin; !outside(w)) bits[w] = 0;
        return true;
      });
    }
    return found;
  }

  // out[rank of column] += products. Checked: false once a product's column has no bit.
  template <bool Checked, class T>
  bool sum_ranks(const Scratch& s, T* out) const {
    const T *const x = static_cast<const T*>(a.a.values), *const y = static_cast<const T*>(a.b.values);
    const auto elements = [this](int64_t k) { fetch_elements<T>(b.crow[k]); };
    return over(elements, [&](int64_t p, int64_t, int64_t, int64_t q0, int64_t q1) {
      const T factor = x[p];
      for (int64_t q = q0; q < q1; ++q) {
        const int64_t c = b.col[q], w = (c >> 6) - begin;
        if (outside(w)) continue;
        const uint64_t bits = s.bits[w];
        if (Checked && (bits >> (c & 63) & 1) == 0) return false;
        T& sum = out[s.base[w] + bit_count(bits & below(c))];
        sum = madd(factor, y[q], sum);
      }
      return true;
    });
  }

  // Marks columns in bits and tells where, or checks that they are marked, and adds to sums if there are values.
  // One walk for both, as what a walk costs beside its products is a mispredicted branch and a line of B a row.
  template <bool Checked, class Lanes, class T>
  bool sum_dense(const Scratch& s, Range& range) const {
    constexpr bool may_thicken = Lanes::template kThickens<T>;
    const T *const x = static_cast<const T*>(a.a.values), *const y = static_cast<const T*>(a.b.values);
    T* const sums = static_cast<T*>(s.sums);
    const bool thick = may_thicken && a.sums == Sums::thick;
    const auto both = [this](int64_t k) {
      fetch_words(k);
      if (kValues<T>) fetch_elements<T>(b.crow[k]);
    };
    int64_t lo = a.strict ? width : 0, hi = a.strict ? 0 : width;
    const bool good = over(both, [&](int64_t p, int64_t e0, int64_t e1, int64_t q0, int64_t q1) {
      if (a.strict) {
        const int64_t first = a.words.word[e0] - begin, last = a.words.word[e1 - 1] - begin;
        lo = first < lo ? first : lo;
        hi = last >= hi ? last + 1 : hi;
      }
      const T* value = y + q0 * kValues<T>;
      if constexpr (may_thicken)
        if (thick && p + kNear < a.a.nnz) fetch_rest<T>(m.col[p + kNear]);
      T factor{};
      if constexpr (kValues<T>) factor = x[p];
      for (int64_t e = e0; e < e1; ++e) {
        const int64_t w = a.words.word[e] - begin;
        if (outside(w)) continue;
        const uint64_t bits = a.words.bits[e];
        if (!Checked) s.bits[w] |= bits;
        else if ((bits & ~s.bits[w]) != 0) return false;
        if constexpr (may_thicken)
          if (thick) value = Lanes::add(sums + w * 64, bits, value, factor);
      }
      if constexpr (kValues<T>) {
        if (thick) return true;
        for (int64_t q = q0; q < q1; ++q, ++value) {
          const int64_t c = b.col[q] - begin * 64;
          if (!outside(c >> 6)) sums[c] = madd(factor, *value, sums[c]);
        }
      }
      return true;
    });
    range = lo < hi ? Range{lo, hi} : Range{0, 0};
    return good;
  }

  // flush(how many) whenever as many products lie staged, the row's last in the end.
  template <class Lanes, class T, class Flush>
  void stage(const Scratch& s, const Flush& flush) const {
    const T *const x = static_cast<const T*>(a.a.values), *const y = static_cast<const T*>(a.b.values);
    T *const factors = static_cast<T*>(s.factors), *const elements = static_cast<T*>(s.elements);
    int64_t staged = 0;
    for (int64_t p = m.crow[row]; p < m.crow[row + 1]; ++p) {
      if (p + kAhead < a.a.nnz) fetch_elements<T>(b.crow[m.col[p + kAhead]]);
      const int64_t k = m.col[p], end = b.crow[k + 1];
      for (int64_t q = b.crow[k]; q < end;) {
        const int64_t left = end - q, count = left < kStage - staged ? left : kStage - staged;
        Lanes::stage(b.col + q, y + q * kValues<T>, kValues<T> ? x[p * kValues<T>] : T{}, count, s.columns + staged,
                     factors + staged * kValues<T>, elements + staged * kValues<T>);
        staged += count;
        q += count;
        if (staged == kStage) {
          flush(staged);
          staged = 0;
        }
      }
    }
    flush(staged);
  }

  // A row's own stamp.
  unsigned char stamp(const Scratch& s) const {
    if (++*s.stamp == 256) {
      std::memset(s.met, 0, static_cast<size_t>(64 * width));
      *s.stamp = 1;
    }
    return static_cast<unsigned char>(*s.stamp);
  }

  // How many of columns[0, count) are new to the row of `stamp`.
  static int64_t count_new(const Scratch& s, const int32_t* columns, int64_t count, unsigned char stamp) {
    int64_t found = 0;
    for (int64_t j = 0; j < count; ++j) {
      unsigned char& met = s.met[columns[j]];
      found += met != stamp;
      met = stamp;
    }
    return found;
  }

  // How many columns the row has.
  template <class Lanes>
  int64_t count_staged(const Scratch& s) const {
    const unsigned char own = stamp(s);
    int64_t found = 0;
    stage<Lanes, None>(s, [&](int64_t count) { found += count_new(s, s.columns, count, own); });
    return found;
  }

  // Adds staged products [from, from + count), which are all of the row; lists their columns as they are met, and
  // returns how many.
  template <class T>
  int64_t sum_listed(const Scratch& s, int64_t from, int64_t count) const {
    const T *const factors = static_cast<const T*>(s.factors), *const elements = static_cast<const T*>(s.elements);
    const int32_t* const columns = s.columns;
    int32_t* const list = s.listed;
    unsigned char *const met = s.met, own = stamp(s);
    T* const sums = static_cast<T*>(s.sums);
    int64_t found = 0;
    for (int64_t j = from; j < from + count; ++j) {
      const int64_t c = columns[j];
      list[found] = static_cast<int32_t>(c);
      found += met[c] != own;
      met[c] = own;
      if constexpr (kValues<T>) sums[c] = madd(factors[j], elements[j], sums[c]);
    }
    return found;
  }

  // Marks columns in bits, or checks that they are marked, and adds to sums if there are values.
  template <bool Checked, class Lanes, class T>
  bool sum_staged(const Scratch& s) const {
    const T *const factors = static_cast<const T*>(s.factors), *const elements = static_cast<const T*>(s.elements);
    T* const sums = static_cast<T*>(s.sums);
    uint64_t absent = 0;
    stage<Lanes, T>(s, [&](int64_t count) {
      for (int64_t j = 0; j < count; ++j) {
        const int64_t c = s.columns[j];
        uint64_t& bits = s.bits[c >> 6];
        if constexpr (Checked) absent |= ~bits >> (c & 63) & 1;
        else bits |= uint64_t{1} << (c & 63);
        if constexpr (kValues<T>) sums[c] = madd(factors[j], elements[j], sums[c]);
      }
    });
    return absent == 0;
  }

  // The same for a whole row that is hashed.
  template <bool Checked, class T>
  bool sum_hashed(Hashed& hash, T* out) const {
    const T *const x = static_cast<const T*>(a.a.values), *const y = static_cast<const T*>(a.b.values);
    const auto elements = [this](int64_t k) { fetch_elements<T>(b.crow[k]); };
    return over(elements, [&](int64_t p, int64_t, int64_t, int64_t q0, int64_t q1) {
      const T factor = x[p];
      for (int64_t q = q0; q < q1; ++q) {
        const int64_t c = b.col[q], at = hash.template slot<false>(static_cast<int32_t>(c >> 6));
        if (Checked && (at < 0 || (hash.s.slot_bits[at] >> (c & 63) & 1) == 0)) return false;
        T& sum = out[hash.s.slot_base[at] + bit_count(hash.s.slot_bits[at] & below(c))];
        sum = madd(factor, y[q], sum);
      }
      return true;
    });
  }

  int64_t mark_hashed(Hashed& hash) const {
    const auto words = [this](int64_t k) { fetch_words(k); };
    int64_t found = 0;
    over(words, [&](int64_t, int64_t e0, int64_t e1, int64_t, int64_t) {
      for (int64_t e = e0; e < e1; ++e) {
        uint64_t& bits = hash.s.slot_bits[hash.template slot<true>(a.words.word[e])];
        found += bit_count(a.words.bits[e] & ~bits);
        bits |= a.words.bits[e];
      }
      return true;
    });
    return found;
  }
};

// Lays the products of rows [row, stop), at most kStage, side by side. Alone in its function: inlined where rows are
// filled, half of its instructions saved and fetched registers.
template <class Lanes, class T, class Index>
[[gnu::noinline]] void stage_rows(const Args& a, int64_t row, int64_t stop, const Scratch& s) {
  const Rows<Index> m(a.a), b(a.b);
  const T *const x = static_cast<const T*>(a.a.values), *const y = static_cast<const T*>(a.b.values);
  const Row<Index, false> fetched(a, row, 0, 0);
  int32_t* columns = s.columns;
  T *factors = static_cast<T*>(s.factors), *elements = static_cast<T*>(s.elements);
  const int64_t end = m.crow[stop], sure = end + kAhead <= a.a.nnz ? end : a.a.nnz - kAhead;
  const auto lay = [&](int64_t p) {
    const int64_t k = m.col[p], q = b.crow[k], count = b.crow[k + 1] - q;
    Lanes::stage(b.col + q, y + q * kValues<T>, kValues<T> ? x[p * kValues<T>] : T{}, count, columns, factors,
                 elements);
    columns += count;
    factors += count * kValues<T>;
    elements += count * kValues<T>;
  };
  int64_t p = m.crow[row];
  for (; p < sure; ++p) {
    fetched.template fetch_elements<T>(b.crow[m.col[p + kAhead]]);
    lay(p);
  }
  for (; p < end; ++p) lay(p);
}

}  // namespace
}  // namespace sparsecore::spgemm
