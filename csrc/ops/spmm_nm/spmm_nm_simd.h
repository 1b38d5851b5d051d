// SPDX-License-Identifier: Apache-2.0
// spmm_nm loops, compiled once per ISA. Two ways through a row of W:
//   words   few rows of x: 64 columns of W a time, from packed values to sums in registers. Positions need no count of
//           what came before, so every word's address is known. R rows of W together share x.
//   lists   more rows of x, a constant fan-in, 1:8 and 1:16, float8: positions become int32 columns, values fp32, then
//           cpu/panel.h.
// One thread owns rows [begin, end) and all of x; positions are checked in the pass that reads them.
#pragma once
#include "ops/spmm_nm/spmm_nm_rows.h"

// The ISA's file has defined, before this header:
//   F32, Bf16, F16, I8    tags of values, each with Element
//   Word<n, m, Value>     64 columns of a row:
//     steps, registers    pieces of a word, and of sums that each gives
//     interleaved         lane l of register q of a step's x is column l * registers + q, else q * width + l
//     exact               only stored columns of x are read; else zeros of W meet x, which must be finite
//     unit                of a sum
//     Codes               what open(first byte of a word of positions) makes
//     X                   what load_x(x, s) takes of a row of x, s a step
//     Step                what step(Codes, values of the word, s) makes: at most kOver elements past them are read
//     mul(X, Step, q)     register q of the products' other factor, with Step::v[q]
//   Lanes                 see spmm_nm_rows.h
//   rows_together(M)      R for M rows of x at once
//   kWordRows             most rows of x that words take
namespace sparsecore::spmm_nm {
namespace {

constexpr int64_t kOver = 16;   // elements that a step may read past its word's values
constexpr int64_t kStage = 16;  // rows of a chunk whose last words may be copied
constexpr int64_t kMostWord = kNmColumns * 3 / 4;  // values that a word has, at most: 6:8

inline bool has_words(const NmView& w) { return w.packed() && w.value != Dtype::f8 && w.group / w.keep <= 4; }

// The stored elements alone, in plain order. For a row that has been checked.
inline float exact_sum(const Args& a, int64_t row, int64_t i) {
  const Linear& d = a.dense;
  const NmView& w = a.weight;
  const int64_t first = row * w.row_values();
  float sum = 0.0f;
  nm_row(w, row, [&](int64_t column, int64_t p) {
    sum += load_f32(w.values, w.value, first + p) * load_f32(d.x, d.dtype, i * d.x_stride + column);
  });
  return sum;
}

// Columns of a word's stored elements, which rise.
template <int n, int m>
inline void word_columns(uint64_t word, int32_t base, int32_t* out) {
  if constexpr (nm_is_mask(n, m)) {
    for (int64_t g = 0; g < kNmColumns / m; ++g) nm_group<n, m>(word, g, out + g * n);
    for (int j = 0; j < nm_word_values(n, m); ++j) out[j] += base;
  } else {
    for (int j = 0; j < nm_word_values(n, m); ++j)
      out[j] = base + j / n * m + static_cast<int32_t>(word >> j * nm_field(m) & (m - 1));
  }
}

// A copy of the last word of a row's values, 0 where the column is k or more and for kOver past them.
inline void stage_word(const NmView& w, int64_t row, void* out) {
  nm_visit(w.keep, w.group, [&]<int n, int m>() {
    constexpr int64_t kValues = nm_word_values(n, m);
    const int64_t size = dtype_bytes(w.value), last = nm_words(w.k) - 1;
    std::memcpy(out, element(w, row * w.row_values() + last * kValues), static_cast<size_t>(kValues * size));
    std::memset(static_cast<char*>(out) + kValues * size, 0, static_cast<size_t>(kOver * size));
    int32_t columns[kValues];
    word_columns<n, m>(nm_word<n, m>(w.codes(row) + last * nm_word_bytes(n, m)), 0, columns);
    for (int64_t j = 0; w.k % kNmColumns != 0 && j < kValues; ++j)
      if (columns[j] >= w.k % kNmColumns) std::memset(static_cast<char*>(out) + j * size, 0, static_cast<size_t>(size));
  });
}

// A kind of W and of values, for M rows of x: its loop over words, and what it says of itself. The loop is all that is
// compiled for each.
struct Words {
  void (*rows)(const uint8_t* const* codes, const void* const* values, const float* x, int64_t words,
               int64_t next_values, int64_t next_codes, float* acc);
  uint64_t (*faults)(const uint8_t* codes, int64_t words);
  int64_t steps, registers;
  bool interleaved, exact;
  float unit;
};

// Not 0 where a group of a row does not hold. A pass of its own over a row's positions, as it vectorises: 1 uop for 64
// columns, where in the loop below it would be 6 to 10.
template <int n, int m>
inline uint64_t row_faults(const uint8_t* codes, int64_t words) {
  uint64_t faults = 0;
  for (int64_t i = 0; i < words; ++i) faults |= nm_word_faults<n, m>(nm_word<n, m>(codes + i * nm_word_bytes(n, m)));
  return faults;
}

// Some words of R rows of W against M rows of x: acc[(r * M + i) * width ..] += partial sums of W[r] · x[i]. `next`:
// bytes from these rows' values and positions to those that this thread meets later.
template <class W, int n, int m, int R, int M>
inline void word_rows(const uint8_t* const* codes, const void* const* values, const float* x, int64_t words,
                      int64_t next_values, int64_t next_codes, float* acc_out) {
  using T = typename W::Element;
  constexpr int C = R * M < 4 ? 2 : 1;  // sums per (r, i)
  constexpr int64_t kValues = nm_word_values(n, m), kBytes = nm_word_bytes(n, m);
  typename Wide::reg acc[R][M][C];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      acc[r][i][0] = Wide::load(acc_out + (r * M + i) * Wide::width);
      if (C > 1) acc[r][i][C - 1] = Wide::zero();
    }
  for (int64_t word = 0; word < words; ++word, x += 64 * M) {
    typename W::Codes code[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      code[r] = W::open(codes[r] + word * kBytes);
      const char* at = static_cast<const char*>(values[r]) + word * kValues * static_cast<int64_t>(sizeof(T));
#pragma GCC unroll 4
      for (int64_t line = 0; line < kValues * static_cast<int64_t>(sizeof(T)); line += 64)
        __builtin_prefetch(at + next_values + line);
    }
    __builtin_prefetch(codes[word % R] + next_codes + kBytes * word);
#pragma GCC unroll 8
    for (int s = 0; s < W::steps; ++s) {
      typename W::Step step[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) step[r] = W::step(code[r], static_cast<const T*>(values[r]) + word * kValues, s);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) {
        const typename W::X in = W::load_x(x + 64 * i, s);
#pragma GCC unroll 4
        for (int q = 0; q < W::registers; ++q)
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            typename Wide::reg& sum = acc[r][i][(s * W::registers + q) % C];
            sum = Wide::fma(step[r].v[q], W::mul(in, step[r], q), sum);
          }
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
      Wide::store(acc_out + (r * M + i) * Wide::width,
                  C == 2 ? Wide::add(acc[r][i][0], acc[r][i][C - 1]) : acc[r][i][0]);
}

// Words of x that a group of rows meets before the next one does: L1 holds them.
constexpr int64_t kBlockFloats = 4096;

// Bytes between what a stream of rows reads and what it asks memory for, at least.
constexpr int64_t kStreamAhead = 1500;

// A chunk of rows of W at a time, a block of columns at a time: the chunk's sums and the block of x stay in L1. The R
// rows that are met together lie a part of the chunk apart, so each walks on through memory as a stream of its own. A
// last word of columns past k, or at the end of the array, is met in a copy.
template <int M>
inline int64_t run_words(const Args& a, const Words& kind, int64_t begin, int64_t end) {
  constexpr int R = rows_together(M);
  constexpr int64_t kChunk = M >= 8 ? kStage : 128 / M;
  static_assert(kStage % R == 0 && kStage % Wide::width == 0);
  const Linear& d = a.dense;
  const NmView& w = a.weight;
  const int64_t words = nm_words(w.k), size = dtype_bytes(w.value);
  const int64_t word_bytes = nm_word_bytes(w.keep, w.group), word_values = nm_word_values(w.keep, w.group) * size;
  const int64_t row_values = words * word_values, row_codes = words * word_bytes;
  const bool blocks = words * M * 64 > 2 * kBlockFloats, ragged = w.k % kNmColumns != 0;
  const int64_t block = blocks ? kBlockFloats / (64 * M) : words, most = blocks || ragged ? kStage : kChunk;
  const int64_t ahead = blocks ? most : kStreamAhead / (row_values + row_codes + 1) + 1;  // rows
  for (int64_t row = begin, count; row < end; row += count) {
    count = end - row < most ? end - row : most;
    if (count > kStage && row + count == w.n) count = kStage;
    const bool staged = words > 0 && (ragged || row + count == w.n);
    const int64_t streams = (count + R - 1) / R, padded = streams * R;
    // Where a row has two sums at a time, the last word is by itself for all, so that all add in one order.
    const int64_t in_place = R * M < 4 || staged ? words - (words > 0) : words;
    // Slot s of the chunk is step s / R of stream s % R; slots without a row have the first.
    const auto row_of = [=](int64_t s) {
      const int64_t r = s % R * streams + s / R;
      return r < count ? r : 0;
    };
    alignas(64) char stage[kStage][(kMostWord + kOver) * 4];
    for (int64_t r = 0; staged && r < count; ++r) stage_word(w, row + r, stage[r]);
    for (int64_t first = 0; first < d.m; first += M) {
      const float* x = a.plan.packed_floats ? a.packed + first * words * 64 : static_cast<const float*>(d.x);
      alignas(64) float acc[kChunk * M * Wide::width];
      std::memset(acc, 0, static_cast<size_t>(padded * M * Wide::width) * sizeof(float));
      for (int64_t word = 0; word < words; word += block) {
        const int64_t some = words - word < block ? words - word : block;
        const int64_t direct = in_place - word < some ? in_place - word : some;
        for (int64_t s = 0; s < padded; s += R) {
          const uint8_t* codes[R];
          const void* values[R];
          const void* copies[R];
          for (int j = 0; j < R; ++j) {
            const int64_t at = row_of(s + j);
            codes[j] = w.codes(row + at) + word * word_bytes;
            if (word == 0 && first == 0 && kind.faults(codes[j], words) != 0) return row + at;
            values[j] = static_cast<const char*>(w.values) + (row + at) * row_values + word * word_values;
            copies[j] =
                staged ? stage[at] : static_cast<const char*>(w.values) + (row + at + 1) * row_values - word_values;
          }
          // From a stream's end to where it goes on in the next chunk.
          const int64_t next = ahead + (blocks || s / R + ahead < streams ? 0 : count - streams);
          float* sums = acc + s * M * Wide::width;
          kind.rows(codes, values, x + word * M * 64, direct, next * row_values, next * row_codes, sums);
          if (direct == some) continue;
          for (int j = 0; j < R; ++j) codes[j] += direct * word_bytes;
          kind.rows(codes, copies, x + (word + direct) * M * 64, 1, 0, 0, sums);
        }
      }
      for (int64_t i = 0; i < M && first + i < d.m; ++i) {
        alignas(64) float by_slot[kChunk], sums[kChunk];
        bool finite = true;
        for (int64_t s = 0; s < padded; s += Wide::width)
          Wide::store(by_slot + s, Wide::sums(acc + (s * M + i) * Wide::width, M * Wide::width));
        for (int64_t s = 0; s < padded; ++s) {
          const int64_t r = s % R * streams + s / R;
          if (r >= count) continue;
          sums[r] = by_slot[s] * kind.unit;
          finite &= __builtin_fabsf(sums[r]) <= 0x1.fffffep127f;
        }
        for (int64_t r = 0; !kind.exact && !finite && r < count; ++r)
          if (!(__builtin_fabsf(sums[r]) <= 0x1.fffffep127f)) sums[r] = exact_sum(a, row + r, first + i);
        store_strip(d, w.scales, sums, 1, first + i, 1, row, count);
      }
    }
  }
  return -1;
}

// The lists of cpu/panel.h for packed groups; c0 is a multiple of 64. Columns rise, so that those past k are a row's last.
struct WordDecoder {
  NmView w;

  bool open(int64_t) const { return true; }
  bool close(int64_t, int64_t) const { return true; }
  bool done(int64_t, const Cursor& c) const { return c.column >= w.k; }

  // Columns [c0, c1) of a row; -1: broken.
  int64_t list(int64_t row, int64_t c0, int64_t c1, float* values, int32_t* cols, RowList& out) const {
    const int64_t word_values = nm_word_values(w.keep, w.group), begin = row * w.row_values() + c0 / 64 * word_values;
    int64_t count = nm_words(c1 - c0) * word_values;
    uint64_t faults = 0;
    nm_visit(w.keep, w.group, [&]<int n, int m>() {
      int32_t* end = cols;
      for (int64_t c = c0; c < c1; c += kNmColumns, end += nm_word_values(n, m)) {
        const uint64_t word = nm_word<n, m>(w.codes(row) + c / kNmColumns * nm_word_bytes(n, m));
        faults |= nm_word_faults<n, m>(word);
        word_columns<n, m>(word, static_cast<int32_t>(c), end);
      }
    });
    if (faults != 0) return -1;
    while (count > 0 && cols[count - 1] >= w.k) --count;
    prefetch(static_cast<const char*>(element(w, begin)) + kAhead, count * dtype_bytes(w.value));
    out = {widened(w, begin, count, values), cols, count};
    return count;
  }

  int64_t piece(int64_t row, int64_t at, int64_t c0, int64_t c1, float* values, int32_t* cols, RowList& out) const {
    const int64_t count = list(row, c0, c1, values, cols, out);
    return count < 0 ? -1 : at + count;
  }

  bool step(int64_t row, Cursor& c, float* values, int32_t* cols, RowList& out) const {
    const int64_t columns = kStep / nm_word_values(w.keep, w.group) * kNmColumns;
    const int64_t end = w.k - c.column < columns ? w.k : c.column + columns;
    const int64_t count = list(row, c.column, end, values, cols, out);
    c = {c.at + count, end};
    return count >= 0;
  }

  int64_t expand(int64_t row, int64_t at, int64_t c0, int64_t c1, float* out) const {
    alignas(64) float values[kTileColumns + 64];
    alignas(64) int32_t cols[kTileColumns + 64];
    RowList here;
    if (list(row, c0, c1, values, cols, here) < 0) return -1;
    std::memset(out, 0, static_cast<size_t>(c1 - c0) * sizeof(float));
    for (int64_t p = 0; p < here.count; ++p) out[here.cols[p] - c0] = here.values[p];
    return at + here.count;
  }
};

constexpr int64_t word_width(int64_t m) { return m <= 1 ? 1 : m <= 2 ? 2 : 4; }

template <int n, int m, class V>
inline Words words_of(int64_t M) {
  using W = Word<n, m, V>;
  const auto rows = M == 1   ? word_rows<W, n, m, rows_together(1), 1>
                    : M == 2 ? word_rows<W, n, m, rows_together(2), 2>
                             : word_rows<W, n, m, rows_together(4), 4>;
  return {rows, row_faults<n, m>, W::steps, W::registers, W::interleaved, W::exact, W::unit};
}

// Of a weight that has_words, for M rows of x.
inline Words words_of(const NmView& w, int64_t M) {
  return nm_visit(w.keep, w.group, [&]<int n, int m>() {
    constexpr int group = m / n > 4 ? 4 : m;  // 1:8 and 1:16 do not come here
    switch (w.value) {
      case Dtype::bf16: return words_of<n, group, Bf16>(M);
      case Dtype::f16: return words_of<n, group, F16>(M);
      case Dtype::i8: return words_of<n, group, I8>(M);
      default: return words_of<n, group, F32>(M);
    }
  });
}

// Sparser than this, and dense, panels meet lists; else expanded tiles, whose cost is the same at any density.
constexpr double kTileDensity = 0.4;

Plan plan(const Linear& a, const NmView& w) {
  if (a.m >= 1 && a.m <= kWordRows && has_words(w)) {
    Plan p;
    p.chunk_rows = word_width(a.m);
    const bool in_place = a.m == 1 && a.dtype == Dtype::f32 && a.k % 64 == 0 && !words_of(w, p.chunk_rows).interleaved;
    p.packed_floats = in_place ? 0 : (a.m + p.chunk_rows - 1) / p.chunk_rows * p.chunk_rows * nm_words(a.k) * 64;
    return p;
  }
  if (a.m <= kRowsDirect) return rows_plan(a);
  return panel_plan(a, w.packed() && static_cast<double>(w.keep) > kTileDensity * static_cast<double>(w.group));
}

inline bool takes_words(const Args& a) { return a.dense.m <= kWordRows && has_words(a.weight); }

void pack(const Args& a, int64_t begin, int64_t end) {
  if (!takes_words(a)) return pack_x(a.dense, a.plan, a.packed, begin, end);
  const Words kind = words_of(a.weight, a.plan.chunk_rows);
  pack_words(a.dense, a.plan.chunk_rows, kNmColumns / kind.steps, kind.interleaved ? kind.registers : 1, a.packed,
             begin, end);
}

template <class Decoder>
inline int64_t run_lists(const Args& a, const Decoder& decoder, int64_t begin, int64_t end, void* scratch) {
  if (a.plan.chunk_rows == 1) return rows_run(a.dense, a.plan, a.packed, a.weight.scales, decoder, begin, end);
  return panels_run(a.dense, a.plan, a.packed, a.weight.scales, decoder, begin, end, scratch);
}

int64_t run(const Args& a, int64_t begin, int64_t end, void* scratch) {
  const NmView& w = a.weight;
  if (takes_words(a)) {
    const Words kind = words_of(w, a.plan.chunk_rows);
    switch (a.plan.chunk_rows) {
      case 1: return run_words<1>(a, kind, begin, end);
      case 2: return run_words<2>(a, kind, begin, end);
      default: return run_words<4>(a, kind, begin, end);
    }
  }
  if (w.index == Dtype::i16 && a.plan.chunk_rows == 1) switch (a.plan.tile) {
      case 0: return run_rows<1>(a, begin, end);
      case 4: return run_rows<4>(a, begin, end);
      case 8: return run_rows<8>(a, begin, end);
      default: return run_rows<16>(a, begin, end);
    }
  if (!w.packed()) return run_lists(a, RowDecoder{w}, begin, end, scratch);
  return run_lists(a, WordDecoder{w}, begin, end, scratch);
}

}  // namespace
}  // namespace sparsecore::spmm_nm
