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
//   int32_t* decode_word(uint64_t bits, int32_t base, int32_t* out)  columns of set bits; returns past
//              the last, may write 64 beyond it
//   kExpandRows  most rows of x, at most 8, that expand takes; rows_together(M): R for M rows of x
namespace sparsecore::spmm_bitmap {
namespace {

constexpr int64_t kSlack = 64;  // elements that a step may touch past a row's last
constexpr int64_t kRowsMax = 4;

inline int64_t row_span(const BitmapView& w) { return bitmap_words(w.k) * 64 + kSlack; }

inline const void* element(const BitmapView& w, int64_t i) {
  return static_cast<const char*>(w.values) + i * dtype_bytes(w.value);
}

inline bool offsets_ok(const BitmapView& w, int64_t row) {
  const int64_t begin = w.row_offsets[row], end = w.row_offsets[row + 1];
  return begin >= 0 && begin <= end && end <= w.nnz && end - begin <= w.k;
}

inline bool padding_ok(const BitmapView& w, int64_t row) {
  return w.k % 64 == 0 || bitmap_word(w.row_bits(row), w.k / 64) >> (w.k % 64) == 0;
}

inline int64_t row_length(const BitmapView& w, int64_t row) { return w.row_offsets[row + 1] - w.row_offsets[row]; }

inline float bias_of(const Linear& d, int64_t row) { return d.bias ? load_f32(d.bias, d.dtype, row) : 0.0f; }

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

// Where expand reads a row's values: in place when its steps cannot leave the array whatever the bits
// say, else from `stage` after a check. Null: the row is bad.
inline const void* row_values(const BitmapView& w, int64_t row, void* stage) {
  if (!offsets_ok(w, row)) return nullptr;
  const void* values = element(w, w.row_offsets[row]);
  if (w.row_offsets[row] + row_span(w) <= w.nnz) return values;
  if (bitmap_check_row(w, row).fault != BitmapFault::none) return nullptr;
  const int64_t length = row_length(w, row);
  if (length > 0) std::memcpy(stage, values, static_cast<size_t>(length * dtype_bytes(w.value)));
  return stage;
}

// Packed x for expand: [word][M][64], columns of a step in the lane order of its parts, 0 beyond k and
// for rows beyond m. M = 1, fp32 in order and k a multiple of 64: x itself.
template <class E>
inline void pack_expand(const Args& a, int64_t begin, int64_t end) {
  const Linear& d = a.dense;
  const int64_t M = a.plan.chunk_rows, words = bitmap_words(d.k);
  int32_t order[64];
  for (int s = 0; s < 64; s += E::lanes)
    for (int j = 0; j < E::lanes; ++j)
      order[s + (E::interleaved ? j % E::parts * (E::lanes / E::parts) + j / E::parts : j)] = s + j;
  for (int64_t i = begin; i < end; ++i) {
    const void* row = static_cast<const char*>(d.x) + i * d.x_stride * dtype_bytes(d.dtype);
    for (int64_t word = 0; word < words; ++word) {
      const int64_t c = word * 64, live = d.k - c < 64 ? d.k - c : 64;
      alignas(64) float line[64];
      const float* in = widen_all(row, d.dtype, c, live, line);
      if (live < 64) {
        if (in != line) std::memcpy(line, in, static_cast<size_t>(live) * sizeof(float));
        for (int64_t j = live; j < 64; ++j) line[j] = 0.0f;
        in = line;
      }
      float* out = a.packed + (word * M + i) * 64;
      for (int j = 0; j < 64; j += Wide::width)
        Wide::store(out + j, E::interleaved ? Wide::gather(in, order + j) : Wide::load(in + j));
      if (i == d.m - 1)
        for (int64_t j = 64; j < (M - i) * 64; ++j) out[j] = 0.0f;
    }
  }
}

// sums[r * M + i] = W[r] · x[i] in units of E::unit; seen[r]: values that row r's bits asked for.
template <class E, int R, int M>
inline void expand_rows(const uint8_t* const* row_bits, const void* const* row_values, const float* x, int64_t words,
                        int64_t ahead, int64_t* seen, float* sums) {
  using T = typename E::Element;
  constexpr int C = R * M < 4 ? 2 : 1;  // sums per (r, i)
  typename Wide::reg acc[R][M][C];
  const uint8_t* bits[R];
  const T* values[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    bits[r] = row_bits[r];
    values[r] = static_cast<const T*>(row_values[r]);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
      for (int c = 0; c < C; ++c) acc[r][i][c] = Wide::zero();
  }
  for (int64_t word = 0; word < words; ++word, x += 64 * M) {
    uint64_t b[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      b[r] = bitmap_word(bits[r], word);
#pragma GCC unroll 2
      for (int line = 0; line < (sizeof(T) > 2 ? 2 : 1); ++line)
        __builtin_prefetch(reinterpret_cast<const char*>(values[r]) + ahead + 64 * line);
    }
    __builtin_prefetch(row_bits[0] + R * 8 * (words + word));  // the next R rows: -5 to -11 % at 90 %, avx512
#pragma GCC unroll 16
    for (int s = 0; s < 64 / E::lanes; ++s) {
      typename Wide::reg v[R][E::parts];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) values[r] = E::expand(values[r], b[r], s, v[r]);
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
    seen[r] = values[r] - static_cast<const T*>(row_values[r]);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
      sums[r * M + i] = Wide::sum(C == 2 ? Wide::add(acc[r][i][0], acc[r][i][C - 1]) : acc[r][i][0]);
  }
}

template <class E, int M>
inline int64_t run_expand(const Args& a, int64_t begin, int64_t end, void* scratch) {
  constexpr int R = rows_together(M);
  static_assert(R <= kRowsMax);
  const Linear& d = a.dense;
  const BitmapView& w = a.weight;
  const float* x = a.plan.packed_floats ? a.packed : static_cast<const float*>(d.x);
  const int64_t stage_bytes = row_span(w) * dtype_bytes(w.value);
  const int64_t ahead = 4 * (w.n > 0 ? w.nnz / w.n : 0) * dtype_bytes(w.value);
  for (int64_t row = begin; row < end; row += R) {
    const uint8_t* bits[R];
    const void* values[R];
    int64_t seen[R];
    float sums[R * M];
    int good = 0;
    for (; good < R && row + good < end; ++good) {
      values[good] = row_values(w, row + good, static_cast<char*>(scratch) + good * stage_bytes);
      if (!values[good]) break;
      bits[good] = w.row_bits(row + good);
    }
    if (good == 0) return row;
    for (int r = good; r < R; ++r) {
      values[r] = values[0];
      bits[r] = bits[0];
    }
    expand_rows<E, R, M>(bits, values, x, bitmap_words(w.k), ahead, seen, sums);
    for (int r = 0; r < good; ++r) {
      const int64_t at = row + r;
      if (seen[r] != row_length(w, at) || !padding_ok(w, at)) return at;
      const float b = bias_of(d, at), scale = w.scales ? w.scales[at] : 1.0f;
      for (int64_t i = 0; i < d.m; ++i) {
        float sum = sums[r * M + i] * E::unit;
        if (!(__builtin_fabsf(sum) <= 0x1.fffffep127f)) sum = exact_sum(a, at, i);
        store_f32(d.y, d.dtype, i * d.y_stride + at, sum * scale + b);
      }
    }
    if (good < R && row + good < end) return row + good;
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
    out = {widen_all(w.values, w.value, begin, here, values), cols, here};
    return at + here;
  }

  int64_t expand(int64_t row, int64_t at, int64_t c0, int64_t c1, float* out) const {
    const uint8_t* bits = w.row_bits(row);
    int64_t here = 0;
    for (int64_t c = c0; c < c1; c += 64) here += __builtin_popcountll(bitmap_word(bits, c / 64));
    const int64_t begin = w.row_offsets[row] + at;
    if (at + here > row_length(w, row)) return -1;
    alignas(64) float line[kTileColumns + kSlack];
    const float* p = widen_all(w.values, w.value, begin, here, line);
    if (p != line && begin + here + kSlack > w.nnz) {
      std::memcpy(line, p, static_cast<size_t>(here) * sizeof(float));
      p = line;
    }
    if (c1 < w.k) prefetch(element(w, begin + here), here * dtype_bytes(w.value));
    for (int64_t c = c0; c < c1; c += 64, out += 64) {
      const uint64_t word = bitmap_word(bits, c / 64);
#pragma GCC unroll 16
      for (int s = 0; s < 64 / ExpandF32::lanes; ++s) {
        typename Wide::reg v[ExpandF32::parts];
        p = ExpandF32::expand(p, word, s, v);
#pragma GCC unroll 4
        for (int q = 0; q < ExpandF32::parts; ++q) Wide::store(out + s * ExpandF32::lanes + q * Wide::width, v[q]);
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

// Sparser than this, lists overtake expand past kExpandRowsSparse rows of x. At m = 8, bf16, avx2 and
// avx512: 2.9 and 2.1 ms against 3.5 and 3.0 at 70 %, 2.6 and 1.9 against 1.7 and 1.0 at 90 %.
constexpr double kListDensity = 0.2;
constexpr int64_t kExpandRowsSparse = 4;

constexpr int64_t expand_width(int64_t m) { return m <= 1 ? 1 : m <= 2 ? 2 : m <= 4 ? 4 : 8; }

template <class E>
inline Plan plan_expand(const Linear& a, const BitmapView& w) {
  Plan p;
  p.chunk_rows = expand_width(a.m);
  const bool in_place = a.m == 1 && a.dtype == Dtype::f32 && a.k % 64 == 0 && !E::interleaved;
  p.packed_floats = in_place ? 0 : p.chunk_rows * bitmap_words(a.k) * 64;
  p.scratch_bytes = kRowsMax * row_span(w) * dtype_bytes(w.value);
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
  const bool dense = static_cast<double>(w.nnz) > kListDensity * static_cast<double>(a.n) * static_cast<double>(a.k);
  if (a.m >= 1 && a.m <= (dense ? kExpandRows : kExpandRowsSparse)) switch (w.value) {
      case Dtype::bf16: return plan_expand<ExpandBf16>(a, w);
      case Dtype::f16: return plan_expand<ExpandF16>(a, w);
      case Dtype::i8: return plan_expand<ExpandI8>(a, w);
      default: return plan_expand<ExpandF32>(a, w);
    }
  return panel_plan(a, static_cast<double>(w.nnz) > kTileDensity * static_cast<double>(a.n) * static_cast<double>(a.k));
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
  if (a.plan.tile != 0)
    return panels_run(a.dense, a.plan, a.packed, a.weight.scales, Decoder{a.weight}, begin, end, scratch);
  switch (a.weight.value) {
    case Dtype::bf16: return run_expand<ExpandBf16>(a, begin, end, scratch);
    case Dtype::f16: return run_expand<ExpandF16>(a, begin, end, scratch);
    case Dtype::i8: return run_expand<ExpandI8>(a, begin, end, scratch);
    default: return run_expand<ExpandF32>(a, begin, end, scratch);
  }
}

}  // namespace
}  // namespace sparsecore::spmm_bitmap
