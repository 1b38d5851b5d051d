// SPDX-License-Identifier: Apache-2.0
// Loops shared by weight ops once a row of W is a list (fp32 value, column). Included after a vec
// header by *_<isa>.cpp; everything here has internal linkage.
//
// A panel of T rows of x, lanes along m, one nonzero at a time:
//
//          panel [k][T]                 W                      strip [rows][T]
//   c=0    x0 x1 .. xT-1       for (v, c) of row r:  strip[r] += v * panel[c]
//   c=1    x0 x1 .. xT-1
//
// One nonzero is 1 broadcast and T/width loads that feed as many FMAs: at T = 64 the loads are the
// limit. So, for a chunk of rows and a block of columns: the rows' lists are decoded once, and each
// panel's part of that block (L1) meets all of them before the next panel's does. x comes from L3 once
// a chunk: with 32 rows a chunk that traffic, 80 B a nonzero at 90 %, was half of the time at m = 256.
#pragma once
#include "cpu/activation.h"
#include "cpu/pack.h"

namespace sparsecore {
namespace {

struct RowList {
  const float* values;
  const int32_t* cols;
  int64_t count;
};

// The same of `size` elements in all, where out has room for kWiden more: a scalar tail at the very end alone. bf16,
// AVX-512, paired medians: -2 to -5 % at m = 4, 16 and 256, 90 %.
inline const float* widen_past(const void* base, Dtype d, int64_t begin, int64_t count, int64_t size, float* out) {
  const int64_t up = (count + kWiden - 1) / kWiden * kWiden;
  return widen_all(base, d, begin, begin + up <= size ? up : count, out);
}

// Asks L2 for bytes [base, base + bytes): a row's next piece is met a chunk of rows later, too far for
// the hardware to foresee.
inline void prefetch(const void* base, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(static_cast<const char*>(base) + b, 0, 2);
}

// sum + the sum of values[p] * panel[cols[p]], four lanes along m: instructions limit it, so two nonzeros share a
// register of x86. Against one each, CSR, 4096 columns at 90 and 80 %, in cache: -7 to -16 % beside free cores, -18 to
// -21 % beside busy ones; four in a 512-bit register gained nothing (the clock falls). kNext: bytes from what is read
// to what memory is asked for, 0: nothing.
template <Dtype D, int64_t kNext>
inline F32x4::reg add_fours(const void* values, const int32_t* cols, int64_t count, const float* panel,
                            F32x4::reg sum) {
  constexpr int kValues = 4 * Fours::rows;
  Fours::reg acc[4] = {Fours::zero(), Fours::zero(), Fours::zero(), Fours::zero()};
  int64_t p = 0;
  for (; p + kValues <= count; p += kValues) {
    if constexpr (kNext > 0) {
      __builtin_prefetch(reinterpret_cast<const char*>(cols + p) + kNext, 0, 2);
      __builtin_prefetch(static_cast<const char*>(values) + p * dtype_bytes(D) + kNext, 0, 2);
    }
    Fours::reg v;
    if constexpr (D == Dtype::f32) v = Fours::load(static_cast<const float*>(values) + p);
    else v = Fours::load(static_cast<const uint16_t*>(values) + p, D);
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u)
      acc[u] = Fours::fma(Fours::spread(v, u), Fours::gather(panel, cols + p + u * Fours::rows), acc[u]);
  }
  sum = F32x4::add(sum, Fours::fold(Fours::add(Fours::add(acc[0], acc[1]), Fours::add(acc[2], acc[3]))));
  for (; p < count; ++p)
    sum = F32x4::fma(F32x4::set1(load_f32(values, D, p)), F32x4::load(panel + 4 * int64_t{cols[p]}), sum);
  return sum;
}

// strip[0..T) += sum of values[p] * panel[cols[p]]. U independent sums hide the FMA's latency. Loads limit this
// loop: values come four a load (against one: T = 8, 16 take -12, -15 % on AVX-512, T = 64 -4 %) and columns two.
template <int T>
inline void axpy(const float* values, const int32_t* cols, int64_t count, const float* panel, float* strip) {
  using V = typename PanelVec<T>::type;
  constexpr int N = T / V::width, U = N >= 8 ? 1 : N >= 2 ? 2 : 4;
  typename V::reg acc[U][N];
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) {
    acc[0][j] = V::load(strip + j * V::width);
#pragma GCC unroll 4
    for (int u = 1; u < U; ++u) acc[u][j] = V::zero();
  }
  int64_t p = 0;
  for (; p + 4 <= count; p += 4) {
    uint64_t pair[2];
    std::memcpy(pair, cols + p, sizeof(pair));
    const typename V::reg four = V::pin(V::load4(values + p));
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      const float* x = panel + (u % 2 ? pair[u / 2] >> 32 : static_cast<uint32_t>(pair[u / 2])) * T;
      const typename V::reg v = V::pick(four, u);
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) acc[u % U][j] = V::fma(v, V::load(x + j * V::width), acc[u % U][j]);
    }
  }
  for (; p < count; ++p) {
    const typename V::reg v = V::set1(values[p]);
    const float* x = panel + static_cast<int64_t>(cols[p]) * T;
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) acc[0][j] = V::fma(v, V::load(x + j * V::width), acc[0][j]);
  }
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) {
#pragma GCC unroll 4
    for (int u = 1; u < U; ++u) acc[0][j] = V::add(acc[0][j], acc[u][j]);
    V::store(strip + j * V::width, acc[0][j]);
  }
}

template <>
inline void axpy<4>(const float* values, const int32_t* cols, int64_t count, const float* panel, float* strip) {
  F32x4::store(strip, add_fours<Dtype::f32, 0>(values, cols, count, panel, F32x4::load(strip)));
}

constexpr int64_t kTileColumns = 512;  // 256: +3 to +5 % at m = 64 and 256, cold
constexpr int64_t kTileStride = kTileColumns + 16;  // off the 4 KB alias of L1's sets
constexpr int64_t kTileBatch = 48;                  // dense rows at once: 101 KB of L2, whole tiles

// strip[r][j] += sum over c of tile[r][c] * panel[c][j] for R rows and N registers of j. R * N sums stay
// in registers: one broadcast feeds N FMAs and one load of x feeds R. On AVX-512 a broadcast costs as much as a load of
// 64 bytes, 0.26 ns, so that R x N = 6 x 4 reaches 5.4 FMAs a ns of 6.0, 8 x 3 as many, 12 x 2 4.4.
template <int R, int N, class V>
inline void tile_fma(const float* tile, int64_t columns, const float* panel, int64_t panel_stride, float* strip,
                     int64_t strip_stride) {
  typename V::reg acc[R][N];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) acc[r][j] = V::load(strip + r * strip_stride + j * V::width);
  for (int64_t c = 0; c < columns; ++c) {
    typename V::reg x[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) x[j] = V::load(panel + c * panel_stride + j * V::width);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const typename V::reg w = V::set1(tile[r * kTileStride + c]);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) acc[r][j] = V::fma(w, x[j], acc[r][j]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) V::store(strip + r * strip_stride + j * V::width, acc[r][j]);
}

// A panel of T floats against `rows` rows of a tile, a multiple of kTileRows; strip has T floats a row.
template <int T>
inline void tile_panel(const float* tile, int64_t rows, int64_t columns, const float* panel, float* strip) {
  using V = typename PanelVec<T>::type;
  constexpr int registers = T / V::width;
  constexpr int N = registers < kTileRegisters ? registers : kTileRegisters, R = kTileRows * (kTileRegisters / N);
  for (int j = 0; j < T; j += N * V::width) {
    int64_t r = 0;
    for (; r + R <= rows; r += R)
      tile_fma<R, N, V>(tile + r * kTileStride, columns, panel + j, T, strip + r * T + j, T);
    for (; r < rows; r += kTileRows)
      tile_fma<kTileRows, N, V>(tile + r * kTileStride, columns, panel + j, T, strip + r * T + j, T);
  }
}

inline void tile_panel(int64_t width, const float* tile, int64_t rows, int64_t columns, const float* panel,
                       float* strip) {
  switch (width) {
    case 4: return tile_panel<4>(tile, rows, columns, panel, strip);
    case 8: return tile_panel<8>(tile, rows, columns, panel, strip);
    case 16: return tile_panel<16>(tile, rows, columns, panel, strip);
    case 32: return tile_panel<32>(tile, rows, columns, panel, strip);
    default: return tile_panel<64>(tile, rows, columns, panel, strip);
  }
}

inline bool all_finite(const float* x, int64_t count) {
  uint32_t top = 0;  // exponent all ones, anywhere
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = f32_to_bits(x[i]) & 0x7fffffffu;
    top = magnitude > top ? magnitude : top;
  }
  return top < 0x7f800000u;
}

constexpr int64_t kChunkRows = 256;  // rows of W whose sums are held at once
constexpr int64_t kGroup = 256;  // rows of x that those sums are for: strip is 256 KB of L2
constexpr int64_t kListFloor = 32768;  // list elements that scratch holds at least
static_assert(kTileBatch * kTileStride <= 2 * kListFloor && kTileBatch % kTileRows == 0);
constexpr int64_t kTile = 64;

// 64 more than the lists need: a decoder may write that far past a list's end.
inline int64_t list_capacity(int64_t k_block) { return (k_block > kListFloor ? k_block : kListFloor) + 64; }

// Columns a block: 256 KB of all the panels that meet it, 512 KB of a single one (m = 64: -5 to -7 % from longer
// lists). L1-sized blocks lose more by the short lists than they gain by the nearer x: +10 % at m = 256, 90 %.
inline int64_t block_columns(const Linear& a) {
  const int64_t width = a.m < kGroup ? panel_width(a.m, kGroup) : kGroup;
  const int64_t block = (width <= kTile ? 131072 : 65536) / width;
  return block < a.k || a.k == 0 ? block : a.k;
}

// The plan of a call that goes through panels. `dense_tiles`: expand W's blocks (Decoder::expand) and
// multiply them like a dense matrix, which costs the same at any density.
inline Plan panel_plan(const Linear& a, bool dense_tiles) {
  Plan p;
  p.dense_tiles = dense_tiles;
  p.tile = panel_width(a.m, dense_tiles ? kTileRegisters * Wide::width : kTile);
  p.packed_floats = a.m / p.tile * p.tile * a.k + (a.m % p.tile ? panel_width(a.m % p.tile, p.tile) * a.k : 0);
  p.k_block = dense_tiles ? kTileColumns : block_columns(a);
  p.chunk_rows = kChunkRows;
  const int64_t group = a.m < kGroup ? (a.m + p.tile - 1) / p.tile * p.tile : kGroup;
  p.scratch_bytes = kChunkRows * (group * 4 + static_cast<int64_t>(sizeof(RowList)) + 8) +
                    list_capacity(p.k_block) * 8 + kTileRows * kTile * 4;
  return p;
}

// `next`: `step` floats of what the panel's next block is, for each row, are asked of L3 by the way.
template <int T>
inline void panel_rows(const RowList* rows, int64_t count, const float* panel, float* strip, const float* next,
                       int64_t step) {
  for (int64_t r = 0; r < count; ++r) {
    prefetch(next + r * step, step * 4);
    if (rows[r].count > 0) axpy<T>(rows[r].values, rows[r].cols, rows[r].count, panel, strip + r * T);
  }
}

inline void panel_rows(int64_t width, const RowList* rows, int64_t count, const float* panel, float* strip,
                       const float* next, int64_t step) {
  switch (width) {
    case 4: return panel_rows<4>(rows, count, panel, strip, next, step);
    case 8: return panel_rows<8>(rows, count, panel, strip, next, step);
    case 16: return panel_rows<16>(rows, count, panel, strip, next, step);
    case 32: return panel_rows<32>(rows, count, panel, strip, next, step);
    default: return panel_rows<64>(rows, count, panel, strip, next, step);
  }
}

// y[first + i, row + r] = strip[r][i] * scale + bias for the `live` rows of x that the panel holds.
inline void store_strip(const Linear& a, const float* scales, const float* strip, int64_t width, int64_t first,
                        int64_t live, int64_t row, int64_t count) {
  constexpr int64_t kRows = 256;  // of W, a KB of y; 16: +2 to +7 % at m = 256, 90 %, +30 % at k = 512
  for (int64_t r0 = 0; r0 < count; r0 += kRows) {
    const int64_t some = count - r0 < kRows ? count - r0 : kRows;
    float scale[kRows], bias[kRows];
    for (int64_t r = 0; r < some; ++r) {
      scale[r] = scales ? scales[row + r0 + r] : 1.0f;
      bias[r] = a.bias ? load_f32(a.bias, a.dtype, row + r0 + r) : 0.0f;
    }
    const float* in = strip + r0 * width;
    for (int64_t i0 = 0; i0 < live; i0 += 4) {
      const int64_t rows = live - i0 < 4 ? live - i0 : 4;
      alignas(64) float tile[4][kRows];  // [row of x][row of W]
      int64_t r = 0;
      for (; width >= 4 && r + 4 <= some; r += 4) {
        F32x4::reg t[4];
#pragma GCC unroll 4
        for (int64_t j = 0; j < 4; ++j) t[j] = F32x4::load(in + (r + j) * width + i0);
        F32x4::transpose(t);
#pragma GCC unroll 4
        for (int64_t j = 0; j < 4; ++j) F32x4::store(tile[j] + r, t[j]);
      }
      for (; r < some; ++r)
        for (int64_t j = 0; j < rows; ++j) tile[j][r] = in[r * width + i0 + j];
      for (int64_t j = 0; j < rows; ++j) {
        const int64_t out = (first + i0 + j) * a.y_stride + row + r0;
        if (!a.plain()) {
          for (r = 0; r < some; ++r) tile[j][r] = tile[j][r] * scale[r] + bias[r];
          finish_row(a, first + i0 + j, row + r0, tile[j], some);
        } else if (a.dtype == Dtype::f32) {
          float* y = static_cast<float*>(a.y) + out;
          for (r = 0; r < some; ++r) y[r] = tile[j][r] * scale[r] + bias[r];
        } else {
          for (r = 0; r < some; ++r) store_f32(a.y, a.dtype, out + r, tile[j][r] * scale[r] + bias[r]);
        }
      }
    }
  }
}

// sum[0..4) += values[p] * x[cols[p]], lanes along the list, x gathered.
inline void dot(const RowList& row, const float* x, float* sum) {
  using V = F32x4;
  V::reg acc[4] = {V::load(sum), V::zero(), V::zero(), V::zero()};
  int64_t p = 0;
  for (; p + 16 <= row.count; p += 16)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
      acc[j] = V::fma(V::load(row.values + p + 4 * j), V::gather(x, row.cols + p + 4 * j), acc[j]);
  for (; p + 4 <= row.count; p += 4) acc[0] = V::fma(V::load(row.values + p), V::gather(x, row.cols + p), acc[0]);
  V::store(sum, V::add(V::add(acc[0], acc[1]), V::add(acc[2], acc[3])));
  for (; p < row.count; ++p) sum[0] += row.values[p] * x[row.cols[p]];
}

constexpr int64_t kRowsDirect = 16;  // rows of x up to which rows_run is the way
constexpr int64_t kStep = 256;  // list elements a step may give, at most
constexpr int64_t kAhead = 4096;  // bytes between what a step reads and what it asks memory for

// The plan of a call that goes through rows_run.
inline Plan rows_plan(const Linear& a) {
  Plan p;
  p.tile = a.m == 1 ? 0 : panel_width(a.m, kRowsDirect);
  p.packed_floats = p.tile != 0 ? p.tile * a.k : a.dtype == Dtype::f32 ? 0 : a.k;
  return p;
}

// Rows [begin, end) of W against at most T rows of x, a row at a time: each step's list is met while L1
// has it. Blocks of columns whose x stays in L1 too cost more: m = 4 to 16 at 70 to 90 %, AVX-512, cold, 1.0 to 1.3
// times as long by bitmap, 1.3 to 1.8 by CSR, with the next piece and the next rows asked for ahead.
// Returns -1 or a row that the decoder refuses. The decoder has
//   bool step(row, Cursor&, values, cols, RowList&)  the next piece of a row, kStep elements at most; a
//     fresh cursor starts the row; false: broken
//   bool done(row, Cursor)  the row has been met, and close(row, at), as below
struct Cursor {
  int64_t at = 0, column = 0;  // nonzeros and columns behind
};

template <int T, class Decoder>
inline int64_t rows_run(const Linear& a, const float* x, const float* scales, const Decoder& decoder, int64_t begin,
                        int64_t end) {
  constexpr int64_t kRows = 16;
  alignas(64) float values[kStep + 64];
  alignas(64) int32_t cols[kStep + 64];
  alignas(64) float strips[kRows * T];
  for (int64_t row = begin; row < end; row += kRows) {
    const int64_t count = end - row < kRows ? end - row : kRows;
    for (int64_t r = 0; r < count; ++r) {
      if (!decoder.open(row + r)) return row + r;
      alignas(64) float sums[T < 4 ? 4 : T] = {};
      Cursor cursor;
      while (!decoder.done(row + r, cursor)) {
        RowList list;
        if (!decoder.step(row + r, cursor, values, cols, list)) return row + r;
        if constexpr (T == 1) dot(list, x, sums);
        else axpy<T>(list.values, list.cols, list.count, x, sums);
      }
      if (!decoder.close(row + r, cursor.at)) return row + r;
      if (T == 1) sums[0] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      std::memcpy(strips + r * T, sums, T * sizeof(float));
    }
    store_strip(a, scales, strips, T, 0, a.m, row, count);
  }
  return -1;
}

template <class Decoder>
inline int64_t rows_run(const Linear& a, const Plan& plan, const float* packed, const float* scales,
                        const Decoder& decoder, int64_t begin, int64_t end) {
  const float* x = plan.packed_floats ? packed : static_cast<const float*>(a.x);
  switch (plan.tile) {
    case 0: return rows_run<1>(a, x, scales, decoder, begin, end);
    case 4: return rows_run<4>(a, x, scales, decoder, begin, end);
    case 8: return rows_run<8>(a, x, scales, decoder, begin, end);
    default: return rows_run<16>(a, x, scales, decoder, begin, end);
  }
}

// `rows` dense rows of kTileStride floats, W's columns [c0, c1), against the panels of rows
// [group, group_end) of x: a panel's part stays in L1 while all the rows pass. strip holds `chunk` rows a
// panel, this call's from `row` on; it has room for kTileRows - 1 more, which a last partial tile adds
// zeros to.
inline void panel_tiles(const Linear& a, const Plan& plan, const float* tile, int64_t rows, int64_t c0, int64_t c1,
                        int64_t group, int64_t group_end, const float* packed, float* strip, int64_t chunk,
                        int64_t row) {
  for (int64_t first = group; first < group_end; first += plan.tile) {
    const int64_t width = panel_width(a.m - first, plan.tile);
    const float* panel = packed + first * a.k + c0 * width;
    tile_panel(width, tile, rows, c1 - c0, panel, strip + (first - group) * chunk + row * width);
  }
}

// Rows [begin, end) of W against all panels. Returns -1 or the first row that a decoder refuses.
//
// A Decoder checks what it reads and has
//   bool open(row)                                 offsets of the row hold
//   int64_t piece(row, at, c0, c1, values, cols, RowList&)
//     columns [c0, c1) of a row, `at` of whose nonzeros lie before c0; what is not already fp32 values
//     and int32 columns goes to values and cols [c1 - c0]. Returns the new `at`, or -1: broken.
//   int64_t expand(row, at, c0, c1, out)           the same piece as c1 - c0 floats, zeros and all
//     (only a decoder whose plans set dense_tiles)
//   bool close(row, at)                            all of the row's nonzeros have been met
template <class Decoder>
inline int64_t panels_run(const Linear& a, const Plan& plan, const float* packed, const float* scales,
                          const Decoder& decoder, int64_t begin, int64_t end, void* scratch) {
  const int64_t capacity = list_capacity(plan.k_block);
  RowList* lists = static_cast<RowList*>(scratch);
  int64_t* at = reinterpret_cast<int64_t*>(lists + kChunkRows);
  float* values = reinterpret_cast<float*>(at + kChunkRows);  // or dense rows: as many bytes
  int32_t* cols = reinterpret_cast<int32_t*>(values + capacity);
  float* strip = reinterpret_cast<float*>(cols + capacity);
  const bool tiles = plan.dense_tiles && all_finite(packed, plan.packed_floats);
  const int64_t batch = tiles ? kTileBatch : (capacity - 64) / plan.k_block;

  for (int64_t row = begin; row < end; row += kChunkRows) {
    const int64_t count = end - row < kChunkRows ? end - row : kChunkRows;
    for (int64_t group = 0; group < a.m; group += kGroup) {
      const int64_t group_end = a.m - group < kGroup ? a.m : group + kGroup;
      for (int64_t r = 0; r < count; ++r) {
        if (!decoder.open(row + r)) return row + r;
        at[r] = 0;
      }
      const int64_t sums = count * ((group_end - group + plan.tile - 1) / plan.tile * plan.tile);
      std::memset(strip, 0, static_cast<size_t>(sums) * sizeof(float));
      for (int64_t c0 = 0; c0 < a.k; c0 += plan.k_block) {
        const int64_t c1 = a.k - c0 < plan.k_block ? a.k : c0 + plan.k_block;
        for (int64_t r0 = 0; r0 < count; r0 += batch) {
          const int64_t r1 = count - r0 < batch ? count : r0 + batch;
          if constexpr (requires { decoder.expand(row, at[0], c0, c1, values); }) {
            if (tiles) {
              const int64_t rows = (r1 - r0 + kTileRows - 1) / kTileRows * kTileRows;
              for (int64_t r = r0; r < r1; ++r)
                if ((at[r] = decoder.expand(row + r, at[r], c0, c1, values + (r - r0) * kTileStride)) < 0)
                  return row + r;
              std::memset(values + (r1 - r0) * kTileStride, 0, static_cast<size_t>(rows - (r1 - r0)) * kTileStride * 4);
              panel_tiles(a, plan, values, rows, c0, c1, group, group_end, packed, strip, count, r0);
              continue;
            }
          }
          int64_t used = 0;
          for (int64_t r = r0; r < r1; ++r) {
            at[r] = decoder.piece(row + r, at[r], c0, c1, values + used, cols + used, lists[r]);
            if (at[r] < 0) return row + r;
            used += lists[r].count;
          }
          for (int64_t first = group; first < group_end; first += plan.tile) {
            const int64_t width = panel_width(a.m - first, plan.tile);
            const float* panel = packed + first * a.k;
            // More than one panel do not stay in L2: m = 256 at 70 to 90 %, -3 to -6 %. A single one does: +3 %.
            const int64_t step = a.m > plan.tile ? (c1 - c0 + count - 1) / count * width : 0;
            panel_rows(width, lists + r0, r1 - r0, panel, strip + (first - group) * count + r0 * width,
                       panel + c1 * width + r0 * step, step);
          }
        }
      }
      for (int64_t r = 0; r < count; ++r)
        if (!decoder.close(row + r, at[r])) return row + r;
      for (int64_t first = group; first < group_end; first += plan.tile) {
        const int64_t live = group_end - first < plan.tile ? group_end - first : plan.tile;
        store_strip(a, scales, strip + (first - group) * count, panel_width(live, plan.tile), first, live, row, count);
      }
    }
  }
  return -1;
}

}  // namespace
}  // namespace sparsecore
