// SPDX-License-Identifier: Apache-2.0
// spmm_bitmap loops, compiled once per ISA. Two ways through a row of W:
//   expand  few rows of x: a step of bits spreads its values over lanes along k, zero where nothing is
//           stored, times x. R rows of W together share x and hide each other's latency.
//   lists   more rows of x: bits become int32 columns, values fp32, then cpu/panel.h.
// One thread owns rows [begin, end) and all of x; bitmask and values are read once, front to back.
//
// 0 * NaN and 0 * infinity are NaN: an x that is not finite at an unstored column shows as a NaN sum.
// Such a row is summed again over its stored elements alone, so no pass over x is needed.
#pragma once
#include "cpu/panel.h"
#include "ops/spmm_bitmap/spmm_bitmap.h"

// The ISA's file has defined, before this header:
//   ExpandF32, ExpandBf16, ExpandF16, ExpandI8, each
//     Element, lanes (columns a step), parts (registers a step), unit (of a sum), interleaved:
//              lane l of part q is column l * parts + q of the step, else q * width + l
//     expand(p, word, s, out)  step s of a word of bits whose values start at p; returns p past them
//     order(out)               interleaved parts of a step, put in the order of columns
//   int32_t* decode_word(uint64_t bits, int32_t base, int32_t* out)  columns of set bits; returns past
//              the last, may write 64 beyond it
//   kExpandRows  most rows of x that expand takes; rows_together(M): R for M rows of x at once, 8 at most
//   kListDensity4  W sparser than this goes through lists at 3 and 4 rows of x
namespace sparsecore::spmm_bitmap {
namespace {

constexpr int64_t kSlack = 64;  // elements that a step may touch past a row's last
constexpr int64_t kStage = 16;  // rows of a chunk whose values may be copied

inline int64_t row_span(const BitmapView& w) { return bitmap_words(w.k) * 64 + kSlack; }

inline const void* element(const BitmapView& w, int64_t i) {
  return static_cast<const char*>(w.values) + i * dtype_bytes(w.value);
}

// 0 <= begin <= end <= nnz and end - begin <= k, whatever the offsets are.
SPARSECORE_INLINE bool offsets_ok(const BitmapView& w, int64_t row) {
  const auto begin = static_cast<uint64_t>(w.row_offsets[row]), end = static_cast<uint64_t>(w.row_offsets[row + 1]);
  return (begin <= end) & (end <= static_cast<uint64_t>(w.nnz)) & (end - begin <= static_cast<uint64_t>(w.k));
}

SPARSECORE_INLINE bool padding_ok(const BitmapView& w, int64_t row) {
  return w.k % 64 == 0 || bitmap_word(w.row_bits(row), w.k / 64) >> (w.k % 64) == 0;
}

inline int64_t row_length(const BitmapView& w, int64_t row) { return w.row_offsets[row + 1] - w.row_offsets[row]; }

// The stored elements alone, in plain order. For a row that has been checked.
inline float exact_sum(const Args& a, int64_t row, int64_t i) {
  const Linear& d = a.dense;
  const BitmapView& w = a.weight;
  float sum = 0.0f;
  int64_t p = w.row_offsets[row];
  for (int64_t word = 0; word < bitmap_words(w.k); ++word)
    for (uint64_t left = bitmap_word(w.row_bits(row), word); left != 0; left &= left - 1, ++p)
      sum +=
          load_f32(w.values, w.value, p) * load_f32(d.x, d.dtype, i * d.x_stride + word * 64 + __builtin_ctzll(left));
  return sum;
}

// Whether a step through a row cannot leave the values, whatever the bits say.
inline bool in_place(const BitmapView& w, int64_t row) {
  return w.row_offsets[row] >= 0 && w.row_offsets[row] <= w.nnz - row_span(w);
}

// A checked copy of a row's values with room for a step past them. Null: the row is bad.
template <class T>
[[gnu::cold, gnu::noinline]] inline const T* staged(const BitmapView& w, int64_t row, T* stage) {
  if (bitmap_check_row(w, row).fault != BitmapFault::none) return nullptr;
  const int64_t length = row_length(w, row);
  if (length > 0) std::memcpy(stage, element(w, w.row_offsets[row]), static_cast<size_t>(length) * sizeof(T));
  return stage;
}

template <class E>
inline void pack_expand(const Args& a, int64_t begin, int64_t end) {
  pack_words(a.dense, a.plan.chunk_rows, E::lanes, E::interleaved ? E::parts : 1, a.packed, begin, end);
}

// Some words of R rows of W against M rows of x: acc[(r * M + i) * width ..] += partial sums of W[r] · x[i].
// bits[r] and values[r] point at the first word; values[r] is left past the last. `next`: bytes from what is
// read of values and bits to what is asked for. Not inlined: among its caller's values its own spill (avx512,
// m = 8: +20 to +40 %).
template <class E, int R, int M>
[[gnu::noinline]] inline void expand_rows(const uint8_t* const* bits, const void** values, const float* x,
                                          int64_t words, int64_t next_values, int64_t next_bits, float* acc_out) {
  using T = typename E::Element;
  constexpr int C = R * M < 4 ? 2 : 1;  // sums per (r, i)
  typename Wide::reg acc[R][M][C];
  const T* at[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    at[r] = static_cast<const T*>(values[r]);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      acc[r][i][0] = Wide::load(acc_out + (r * M + i) * Wide::width);
      if (C > 1) acc[r][i][C - 1] = Wide::zero();
    }
  }
  for (int64_t word = 0; word < words; ++word, x += 64 * M) {
    uint64_t b[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      b[r] = bitmap_word(bits[r], word);
#pragma GCC unroll 2
      for (int line = 0; line < (sizeof(T) > 2 ? 2 : 1); ++line)
        __builtin_prefetch(reinterpret_cast<const char*>(at[r]) + next_values + 64 * line);
    }
    __builtin_prefetch(bits[word % R] + next_bits + 8 * word);  // m = 1 at 90 %, avx512: -5 to -11 %
#pragma GCC unroll 16
    for (int s = 0; s < 64 / E::lanes; ++s) {
      typename Wide::reg v[R][E::parts];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) at[r] = E::expand(at[r], b[r], s, v[r]);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int q = 0; q < E::parts; ++q) {
          typename Wide::reg in = Wide::load(x + 64 * i + s * E::lanes + q * Wide::width);
          if (R > 1) in = Wide::pin(in);  // m = 4 at 90 %, avx2: 1.28 to 1.00 ms
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            typename Wide::reg& sum = acc[r][i][(s * E::parts + q) % C];
            sum = Wide::fma(v[r][q], in, sum);
          }
        }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    values[r] = at[r];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
      Wide::store(acc_out + (r * M + i) * Wide::width,
                  C == 2 ? Wide::add(acc[r][i][0], acc[r][i][C - 1]) : acc[r][i][0]);
  }
}

// Floats of x that a group of rows meets before the next one does: L1 holds them.
constexpr int64_t kBlockFloats = 4096;
// Bytes between what a stream of rows reads and what it asks memory for, at least.
constexpr int64_t kStreamAhead = 1500;

// A chunk of rows of W at a time, a block of columns at a time: the chunk's sums and the block of x stay in L1.
// The sums of a chunk are folded together. The R rows that are met together lie a part of the chunk apart, so each
// walks on through memory as a stream of its own, which the hardware foresees. Against R neighbours (AVX-512, cold,
// two threads, m = 1, half zeros, bf16): -13 % at k = 576 and 4096, -18 % at k = 1536. A short row's cost is in the
// bookkeeping, so that has no division and no call (k = 576: -9 % at m = 1, 2 and 4).
template <class E, int M>
inline int64_t run_expand(const Args& a, int64_t begin, int64_t end, void* scratch) {
  using T = typename E::Element;
  constexpr int R = rows_together(M);
  constexpr int64_t kChunk = M >= 8 ? 16 : 128 / M, size = sizeof(T);
  static_assert(kChunk >= kStage && kStage % R == 0 && kStage % Wide::width == 0);
  const Linear& d = a.dense;
  const BitmapView& w = a.weight;
  const int64_t words = bitmap_words(w.k), span = row_span(w);
  const bool blocks = words * M * 64 > 2 * kBlockFloats;
  const int64_t block = blocks ? kBlockFloats / (64 * M) : words, most = blocks ? kStage : kChunk;
  const int64_t value_bytes = (w.n > 0 ? w.nnz / w.n : 0) * size, bit_bytes = 8 * words;
  const int64_t ahead = blocks ? most : kStreamAhead / (value_bytes + bit_bytes + 1) + 1;  // rows
  for (int64_t row = begin, count; row < end; row += count) {
    count = end - row < most ? end - row : most;
    // In place as long as offsets rise, which is checked below.
    if (count > kStage && !in_place(w, row + count - 1)) count = kStage;
    const int64_t streams = (count + R - 1) / R, padded = streams * R;
    // Slot s of the chunk's arrays holds step s / R of stream s % R; slots without a row hold the first.
    const auto each_row = [=](auto&& fn) {
      for (int64_t r = 0, s = 0, stream = 0; r < count; ++r, s = s + R < padded ? s + R : ++stream) fn(r, s);
    };
    const uint8_t* bits[kChunk];
    const void* values[kChunk];
    const void* stop[kChunk];
    int64_t bad = -1;
    each_row([&](int64_t r, int64_t s) {
      if (!offsets_ok(w, row + r) || !padding_ok(w, row + r)) {
        bad = row + r;
        return;
      }
      const int64_t first = w.row_offsets[row + r];
      const T* value = static_cast<const T*>(w.values) + first;
      if (first > w.nnz - span && !(value = staged(w, row + r, static_cast<T*>(scratch) + r % kStage * span))) {
        bad = row + r;
        return;
      }
      bits[s] = w.row_bits(row + r);
      values[s] = value;
      stop[s] = value + row_length(w, row + r);
    });
    if (bad >= 0) return bad;
    for (int64_t s = 0; s < padded; ++s)
      if (s % R * streams + s / R >= count) bits[s] = bits[0], values[s] = values[0];
    for (int64_t first = 0; first < d.m; first += M) {
      const float* x = a.plan.packed_floats ? a.packed + first * words * 64 : static_cast<const float*>(d.x);
      const void* at[kChunk];
      alignas(64) float acc[kChunk * M * Wide::width];
      std::memcpy(at, values, static_cast<size_t>(padded) * sizeof(at[0]));
      std::memset(acc, 0, static_cast<size_t>(padded * M * Wide::width) * sizeof(float));
      for (int64_t word = 0; word < words; word += block) {
        const int64_t some = words - word < block ? words - word : block;
        for (int64_t s = 0; s < padded; s += R) {
          const uint8_t* here[R];
          for (int j = 0; j < R; ++j) here[j] = bits[s + j] + 8 * word;
          // From a stream's end to where it goes on in the next chunk.
          const int64_t next = ahead + (blocks || s / R + ahead < streams ? 0 : count - streams);
          expand_rows<E, R, M>(here, at + s, x + word * M * 64, some, next * value_bytes, next * bit_bytes,
                               acc + s * M * Wide::width);
        }
      }
      each_row([&](int64_t r, int64_t s) { bad = at[s] == stop[s] ? bad : row + r; });
      if (bad >= 0) return bad;
      for (int64_t i = 0; i < M && first + i < d.m; ++i) {
        alignas(64) float by_slot[kChunk], sums[kChunk];
        uint32_t finite = 1;
        for (int64_t s = 0; s < padded; s += Wide::width)
          Wide::store(by_slot + s, Wide::sums(acc + (s * M + i) * Wide::width, M * Wide::width));
        each_row([&](int64_t r, int64_t s) {
          sums[r] = by_slot[s] * E::unit;
          finite &= __builtin_fabsf(sums[r]) <= 0x1.fffffep127f;
        });
        for (int64_t r = 0; !finite && r < count; ++r)
          if (!(__builtin_fabsf(sums[r]) <= 0x1.fffffep127f)) sums[r] = exact_sum(a, row + r, first + i);
        store_strip(d, w.scales, sums, 1, first + i, 1, row, count);
      }
    }
  }
  return -1;
}

// The lists of cpu/panel.h. c0 is a multiple of 64.
struct Decoder {
  BitmapView w;

  bool open(int64_t row) const { return offsets_ok(w, row) && padding_ok(w, row); }

  int64_t piece(int64_t row, int64_t at, int64_t c0, int64_t c1, float* values, int32_t* cols, RowList& out) const {
    const uint8_t* bits = w.row_bits(row);
    int32_t* end = cols;
    for (int64_t c = c0; c < c1; c += 64) end = decode_word(bitmap_word(bits, c / 64), static_cast<int32_t>(c), end);
    const int64_t here = end - cols, begin = w.row_offsets[row] + at;
    if (at + here > row_length(w, row)) return -1;
    if (c1 < w.k) prefetch(element(w, begin + here), here * dtype_bytes(w.value));
    out = {widen_past(w.values, w.value, begin, here, w.nnz, values), cols, here};
    return at + here;
  }

  bool done(int64_t, const Cursor& c) const { return c.column >= w.k; }

  // Words as long as their bits fit in a list.
  bool step(int64_t row, Cursor& c, float* values, int32_t* cols, RowList& out) const {
    const uint8_t* bits = w.row_bits(row);
    int32_t* end = cols;
    const int64_t begin = w.row_offsets[row] + c.at, value = dtype_bytes(w.value);
    for (; c.column < w.k && end - cols <= kStep - 64; c.column += 64)
      end = decode_word(bitmap_word(bits, c.column / 64), static_cast<int32_t>(c.column), end);
    const int64_t count = end - cols;
    if (c.at + count > row_length(w, row)) return false;
    prefetch(static_cast<const char*>(element(w, begin)) + kAhead, count * value);
    out = {widen_past(w.values, w.value, begin, count, w.nnz, values), cols, count};
    c.at += count;
    return true;
  }

  int64_t expand(int64_t row, int64_t at, int64_t c0, int64_t c1, float* out) const {
    switch (w.value) {
      case Dtype::bf16: return expand_as<ExpandBf16>(row, at, c0, c1, out);
      case Dtype::f16: return expand_as<ExpandF16>(row, at, c0, c1, out);
      case Dtype::i8: return expand_as<ExpandI8>(row, at, c0, c1, out);
      default: return expand_as<ExpandF32>(row, at, c0, c1, out);
    }
  }

  template <class E>
  int64_t expand_as(int64_t row, int64_t at, int64_t c0, int64_t c1, float* out) const {
    using T = typename E::Element;
    const uint8_t* bits = w.row_bits(row);
    int64_t here = 0;
    for (int64_t c = c0; c < c1; c += 64) here += __builtin_popcountll(bitmap_word(bits, c / 64));
    const int64_t begin = w.row_offsets[row] + at;
    if (at + here > row_length(w, row)) return -1;
    const T* p = static_cast<const T*>(w.values) + begin;
    alignas(64) T line[kTileColumns + kSlack];
    if (begin + here + kSlack > w.nnz) {
      if (here > 0) std::memcpy(line, p, static_cast<size_t>(here) * sizeof(T));
      p = line;
    }
    if (c1 < w.k) {
      prefetch(element(w, begin + here), here * dtype_bytes(w.value));
      prefetch(bits + c1 / 8, kTileColumns / 8);
    }
    for (int64_t c = c0; c < c1; c += 64) {
      const uint64_t word = bitmap_word(bits, c / 64);
#pragma GCC unroll 16
      for (int s = 0; s < 64 / E::lanes; ++s, out += E::lanes) {
        typename Wide::reg v[E::parts];
        p = E::expand(p, word, s, v);
        if constexpr (E::interleaved) E::order(v);
#pragma GCC unroll 4
        for (int q = 0; q < E::parts; ++q)
          Wide::store(out + q * Wide::width,
                      E::unit == 1.0f ? v[q] : Wide::fma(v[q], Wide::set1(E::unit), Wide::zero()));
      }
    }
    return at + here;
  }

  bool close(int64_t row, int64_t at) const { return at == row_length(w, row); }
};

// Denser than this, panels meet expanded tiles, whose cost is the same at any density. For 32 elements,
// one thread, AVX-512 at 2.9 GHz: tiles 46 ns at m = 64 and 131 at m = 256; lists 50 and 149 at a density
// of 0.5, 29 and 88 at 0.3.
constexpr double kTileDensity = 0.4;

// Sparser than this, lists overtake expand. ns for 32 elements, one thread, bf16, lists and expand:
//   avx512  m = 4: 2.6 and 2.9 at a density of 0.1   m = 8: 4.4 and 4.9 at 0.2   m = 16: 7.1 and 9.9 at 0.3, 11 and 10 at 0.5
//   avx2    m = 4: 5.3 and 3.9 at 0.1                m = 8: 7.3 and 7.8 at 0.2   m = 16: 13 and 16 at 0.3, 19 and 16 at 0.5
constexpr double list_density(int64_t m) { return m <= 2 ? 0.0 : m <= 4 ? kListDensity4 : m <= 8 ? 0.23 : 0.43; }

constexpr int64_t expand_width(int64_t m) { return m <= 1 ? 1 : m <= 2 ? 2 : m <= 4 ? 4 : 8; }

template <class E>
inline Plan plan_expand(const Linear& a, const BitmapView& w) {
  Plan p;
  p.chunk_rows = expand_width(a.m);
  const bool in_place = a.m == 1 && a.dtype == Dtype::f32 && a.k % 64 == 0 && !E::interleaved;
  p.packed_floats = in_place ? 0 : (a.m + p.chunk_rows - 1) / p.chunk_rows * p.chunk_rows * bitmap_words(a.k) * 64;
  p.scratch_bytes = kStage * row_span(w) * dtype_bytes(w.value);
  return p;
}

template <class E>
inline int64_t run_expand(const Args& a, int64_t begin, int64_t end, void* scratch) {
  switch (a.plan.chunk_rows) {
    case 1: return run_expand<E, 1>(a, begin, end, scratch);
    case 2: return run_expand<E, 2>(a, begin, end, scratch);
    case 4: return run_expand<E, 4>(a, begin, end, scratch);
    default: return run_expand<E, 8>(a, begin, end, scratch);
  }
}

Plan plan(const Linear& a, const BitmapView& w) {
  const double elements = static_cast<double>(a.n) * static_cast<double>(a.k), stored = static_cast<double>(w.nnz);
  if (a.m >= 1 && a.m <= kExpandRows && stored >= list_density(a.m) * elements) switch (w.value) {
      case Dtype::bf16: return plan_expand<ExpandBf16>(a, w);
      case Dtype::f16: return plan_expand<ExpandF16>(a, w);
      case Dtype::i8: return plan_expand<ExpandI8>(a, w);
      default: return plan_expand<ExpandF32>(a, w);
    }
  if (a.m <= kRowsDirect) return rows_plan(a);
  return panel_plan(a, stored > kTileDensity * elements);
}

void pack(const Args& a, int64_t begin, int64_t end) {
  if (a.plan.tile != 0) return pack_x(a.dense, a.plan, a.packed, begin, end);
  switch (a.weight.value) {
    case Dtype::bf16: return pack_expand<ExpandBf16>(a, begin, end);
    case Dtype::f16: return pack_expand<ExpandF16>(a, begin, end);
    case Dtype::i8: return pack_expand<ExpandI8>(a, begin, end);
    default: return pack_expand<ExpandF32>(a, begin, end);
  }
}

int64_t run(const Args& a, int64_t begin, int64_t end, void* scratch) {
  if (a.plan.tile != 0) {
    const Decoder decoder{a.weight};
    if (a.plan.chunk_rows == 1) return rows_run(a.dense, a.plan, a.packed, a.weight.scales, decoder, begin, end);
    return panels_run(a.dense, a.plan, a.packed, a.weight.scales, decoder, begin, end, scratch);
  }
  switch (a.weight.value) {
    case Dtype::bf16: return run_expand<ExpandBf16>(a, begin, end, scratch);
    case Dtype::f16: return run_expand<ExpandF16>(a, begin, end, scratch);
    case Dtype::i8: return run_expand<ExpandI8>(a, begin, end, scratch);
    default: return run_expand<ExpandF32>(a, begin, end, scratch);
  }
}

}  // namespace
}  // namespace sparsecore::spmm_bitmap
