// SPDX-License-Identifier: Apache-2.0
// nm_mma_kernel, spmm_nm for x of 16 bits on tensor cores: W's rows are the instruction's 16 rows, x's rows its 8
// columns. W goes from global memory to registers, once, a word ahead of its use; x through a ring of kStages tiles in
// shared memory, filled by asynchronous copies. A block's kK * kR * kM warps:
//
//                 kM groups of 8 N rows of x
//              +-----------------------------+
//     kR       | warp: 16 T rows of W, 8 N   |   kK warps share that tile and take turns along k, U words
//     groups   | rows of x                   |   at a time; their sums meet in shared memory at the end
//              +-----------------------------+
//
//   config   T  N  kK  kR  kM  U   rows of W, of x    for
//   Few      1  1   8   1   1  2        16      8     m <= 8
//   Some     2  4   8   1   1  1        32     32     m <= 64, 32 at a time
//   Many     4  8   1   2   2  1       128    128     2:4
//   Spread   2  8   1   4   2  1       128    128     other kinds, whose spread pairs take registers; so SomeSpread has
//                                                     one block an SM where Some has two
//
// Columns that a row does not store meet x as zeros, or not at all. 0 * NaN and 0 * infinity are NaN: so a sum that is
// NaN is made again from the stored elements alone.
//
// Few: W's bytes once from memory, x [m, k] once for 16 rows of W from the L2 cache, m / 9 of W's bytes in 2:4 of 16
// bits. Some 220 instructions a word and warp, of 320 that an SM of an H100 issues while memory brings the word. In
// flight 2304 bytes a warp, 37 KiB an SM in two blocks, of 20 that it takes. So 4096 x 4096 in bf16, 18.9 MB, should
// take 6 to 7 us, 1.6 to 1.8 times as fast as 33.6 MB of dense W.
// Some: x [m, k] for 32 rows of W is m / 18 of W's bytes. The L2 cache gives some 1.6 times what memory does and W
// passes it too, so from m = 16 on it is the limit: 1.75 times Few's time at m = 32.
// Many: a word of a warp's tile takes 64 mma.sp and 16 ldmatrix of 512 bytes. An SM of an H100 does 8 warps' in 512
// cycles either way, were mma.sp as fast as its tensor cores; mma.sync reaches some 60 % of them, so 1.1 to 1.2 times
// dense cuBLASLt. More takes wgmma.sp.
#pragma once
#include "cuda/atomic.h"
#include "cuda/block.h"
#include "ops/spmm_nm/spmm_nm_cuda_fragments.h"

namespace sparsecore::spmm_nm {
namespace {

using namespace cuda;

constexpr int kStages = 3;

template <int T_, int N_, int K_, int R_, int M_, int U_, int Blocks>
struct MmaConfig {
  static constexpr int T = T_, N = N_, kK = K_, kR = R_, kM = M_, U = U_;
  static constexpr int kBlocks = Blocks;  // an SM
  static constexpr int kThreads = kK * kR * kM * kLanes;
  static constexpr int kRows = 16 * T * kR, kColumns = 8 * N * kM;  // of W, of x
  static constexpr int kTile = 64 * kK * U;  // columns of W and x
  static constexpr int kStride = kTile + 8;  // of x's tile: 8 rows of 16 bytes then meet different banks
  static constexpr int kStage = kColumns * kStride;
  static constexpr int kSums = kK * kColumns * (kRows + 1);  // [kK][kColumns][kRows + 1]
  static constexpr int64_t kShared = 2 * kStages * kStage > 4 * kSums ? 2 * kStages * kStage : 4 * kSums;
};
using Few = MmaConfig<1, 1, 8, 1, 1, 2, 2>;
using Some = MmaConfig<2, 4, 8, 1, 1, 1, 2>;
using SomeSpread = MmaConfig<2, 4, 8, 1, 1, 1, 1>;
using Many = MmaConfig<4, 8, 1, 2, 2, 1, 2>;
using Spread = MmaConfig<2, 8, 1, 4, 2, 1, 1>;

// For 2:4, for others.
template <bool sparse>
struct Sizes {
  using Medium = Some;
  using Large = Many;
};
template <>
struct Sizes<false> {
  using Medium = SomeSpread;
  using Large = Spread;
};

// Begins the copy of columns [begin, begin + kTile) of `rows` rows of x from `top` on, granules in W's order. A thread
// has a granule of every few rows.
template <class Config, int Granule>
SPARSECORE_DEVICE void copy_x(const Linear& d, int64_t top, int rows, int64_t begin, bool aligned, uint16_t* stage) {
  constexpr int kAcross = Config::kTile / Granule, kWord = 64 / Granule, E = kWord / 4;
  constexpr int kSide = kAcross < Config::kThreads ? kAcross : Config::kThreads, kStep = Config::kThreads / kSide;
  const int thread = static_cast<int>(threadIdx.x);
  for (int granule = thread % kSide; granule < kAcross; granule += kSide) {
    const int inside = granule % kWord;
    const int64_t column = begin + granule * Granule, left = d.k - column;
    const int valid = left <= 0 ? 0 : left < Granule ? static_cast<int>(left) : Granule;
    int i = thread / kSide;
    uint16_t* to = stage + i * Config::kStride + (granule / kWord * kWord + inside % E * 4 + inside / E) * Granule;
    const uint16_t* from = static_cast<const uint16_t*>(d.x) + (top + i) * d.x_stride + (valid > 0 ? column : 0);
    if (aligned) {
#pragma unroll 2
      for (; i < rows; i += kStep, to += kStep * Config::kStride, from += kStep * d.x_stride)
        async_copy<2 * Granule>(to, from, 2 * valid);
    } else {
      for (; i < rows; i += kStep, to += kStep * Config::kStride, from += kStep * d.x_stride)
#pragma unroll
        for (int c = 0; c < Granule; ++c) to[c] = c < valid ? from[c] : uint16_t{0};
    }
  }
}

template <class Config, class V, int n, int m>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks) nm_mma_kernel(Linear d, NmView w, bool aligned) {
  using W = Word<V, n, m>;
  constexpr int T = Config::T, N = Config::N, U = Config::U;
  const int64_t top = (static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y) * Config::kColumns;
  if (top >= d.m) return;
  __shared__ int broken[Config::kRows];
  uint16_t* const shared = dynamic_shared<uint16_t>();
  const int warp = warp_index(), part = warp % Config::kK, rows_at = warp / Config::kK % Config::kR * 16 * T,
            columns_at = warp / (Config::kK * Config::kR) % Config::kM * 8 * N;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * Config::kRows, row = first + rows_at + lane_index() / 4;
  const int k = static_cast<int>(d.k), words = static_cast<int>(nm_words(d.k));
  const int rows_left = w.n - row < Config::kRows ? static_cast<int>(w.n - row) : Config::kRows;
  const int64_t values_apart = 8 * w.row_values(), codes_apart = 8 * w.row_bytes();
  // Places within a row change, those of rows stay: so no address of each row waits in registers.
  const V* values =
      static_cast<const V*>(w.values) + row * w.row_values() + part * U * nm_word_values(n, m) + W::first_value();
  const uint8_t* codes = w.codes(row) + part * U * nm_word_bytes(n, m) + W::first_byte();
  const int tiles = (words + Config::kTile / 64 - 1) / (Config::kTile / 64);
  for (int j = static_cast<int>(threadIdx.x); j < Config::kRows; j += Config::kThreads) broken[j] = 0;

  const int rows = d.m - top < Config::kColumns ? static_cast<int>(d.m - top) : Config::kColumns;
  const int groups = (rows - columns_at + 7) / 8;  // of 8 rows of x that this warp has, N or more: all
  // Rows past m are 0.
  const int past = ((rows + 7) / 8 * 8 - rows) * Config::kStride;
  for (int s = 0; s < kStages; ++s)
    for (int j = static_cast<int>(threadIdx.x); j < past; j += Config::kThreads)
      shared[s * Config::kStage + rows * Config::kStride + j] = 0;
  FragmentC<float> sums[T][N];
#pragma unroll
  for (int r = 0; r < T; ++r)
#pragma unroll
    for (int c = 0; c < N; ++c) sums[r][c] = {};
  unsigned bad = 0;  // bit 2 r + h: row 16 r + 8 h + g

  const auto word_of = [&](int tile, int u) { return (tile * Config::kK + part) * U + u; };
  W next[U][T] = {};  // a tile ahead of the products
  const auto load = [&](int tile) {
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (word_of(tile, u) < words)
#pragma unroll
        for (int r = 0; r < T; ++r)
          next[u][r].load(values + u * nm_word_values(n, m) + 2 * r * values_apart,
                          codes + u * nm_word_bytes(n, m) + 2 * r * codes_apart, values_apart, codes_apart,
                          rows_left - 16 * r);
    values += Config::kK * U * nm_word_values(n, m);
    codes += Config::kK * U * nm_word_bytes(n, m);
  };
  const auto copy = [&](int tile) {
    if (tile < tiles)
      copy_x<Config, W::kGranule>(d, top, rows, int64_t{tile} * Config::kTile, aligned,
                                  shared + tile % kStages * Config::kStage);
    async_commit();
  };
  load(0);
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) copy(s);
  for (int tile = 0; tile < tiles; ++tile) {
    uint32_t pairs[U][T][2][W::kPairs], kept[U][T];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int word = word_of(tile, u);
      if (word >= words) continue;
      const int left = k - word * 64;
#pragma unroll
      for (int r = 0; r < T; ++r)
        bad |= next[u][r].decode(d.dtype, w.value, left < 64 ? left : 64, pairs[u][r], kept[u][r]) << 2 * r;
    }
    if constexpr (Config::kK > 1) load(tile + 1);
    async_wait<kStages - 2>();
    block_sync();  // this tile of x is here, the one before has been read
    copy(tile + kStages - 1);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (word_of(tile, u) >= words) continue;
      const uint16_t* const x =
          shared + tile % kStages * Config::kStage + columns_at * Config::kStride + (part * U + u) * 64;
      const auto product = [&]<class Mma, int j>() {  // of 32 columns
#pragma unroll
        for (int c = 0; c < N; ++c) {
          if (c >= groups) continue;
          const FragmentB<2, 4> b = load_fragment_b(x + c * 8 * Config::kStride + j * 32, Config::kStride);
#pragma unroll
          for (int r = 0; r < T; ++r) {
            const auto& p = pairs[u][r];
            if constexpr (W::kSparse) {
              const FragmentA<2> a = {{p[0][2 * j], p[1][2 * j], p[0][2 * j + 1], p[1][2 * j + 1]}};
              mma_sparse<Mma, j>(sums[r][c], a, b, Metadata<2, j>{kept[u][r]});
            } else {
#pragma unroll
              for (int i = 0; i < 2; ++i) {
                const int e = 4 * j + 2 * i;
                const FragmentA<2> a = {{p[0][e], p[1][e], p[0][e + 1], p[1][e + 1]}};
                mma<Mma>(sums[r][c], a, FragmentB<2, 2>{{b.r[2 * i], b.r[2 * i + 1]}});
              }
            }
          }
        }
      };
      const auto half = [&]<int j>() {
        if (d.dtype == Dtype::bf16) product.template operator()<MmaBf16, j>();
        else product.template operator()<MmaF16, j>();
      };
      half.template operator()<0>();
      if constexpr (Config::kK == 1) load(tile + 1);  // into registers that the first half has left
      half.template operator()<1>();
    }
  }

  async_wait<0>();
  block_sync();  // x has been read: sums take its place
  float* const all = dynamic_shared<float>() + part * Config::kColumns * (Config::kRows + 1);
#pragma unroll
  for (int r = 0; r < T; ++r) {
#pragma unroll
    for (int c = 0; c < N; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Position at = FragmentC<float>::at(lane_index(), i);
        all[(columns_at + 8 * c + at.column) * (Config::kRows + 1) + rows_at + 16 * r + at.row] = sums[r][c].c[i];
      }
#pragma unroll
    for (int h = 0; h < 2; ++h)
      if (bad >> (2 * r + h) & 1) atomic_or(broken + rows_at + 16 * r + 8 * h + lane_index() / 4, 1);
  }
  block_sync();
  for (int j = static_cast<int>(threadIdx.x); j < rows * Config::kRows; j += Config::kThreads) {
    const int i = j / Config::kRows, r = j % Config::kRows;
    if (first + r >= d.n) continue;
    float sum = 0.0f;
#pragma unroll
    for (int p = 0; p < Config::kK; ++p)
      sum += dynamic_shared<float>()[(p * Config::kColumns + i) * (Config::kRows + 1) + r];
    const bool good = broken[r] == 0;
    if (good && sum != sum)
      sum = exact_sum<V, n, m>(static_cast<const V*>(w.values) + (first + r) * w.row_values(), w.value,
                               w.codes(first + r), static_cast<const uint16_t*>(d.x) + (top + i) * d.x_stride, d.dtype,
                               d.k);
    finish(d, w, top + i, first + r, good, sum);
  }
}

// Whether x's dtype holds what W stores.
inline bool takes_mma(const Linear& d, const NmView& w) {
  return w.packed() && d.dtype != Dtype::f32 && (w.value == d.dtype || dtype_bytes(w.value) == 1);
}

template <class Config, class V, int n, int m>
const char* launch_mma(const Linear& d, const NmView& w, int64_t grid_rows, void* stream) {
  const int64_t blocks = (d.n + Config::kRows - 1) / Config::kRows,
                tops = (d.m + Config::kColumns - 1) / Config::kColumns;
  constexpr int kBytes = 2 * Word<V, n, m>::kGranule;
  const bool aligned = reinterpret_cast<uintptr_t>(d.x) % kBytes == 0 && 2 * d.x_stride % kBytes == 0;
  const dim3 all(static_cast<unsigned>(blocks), static_cast<unsigned>(tops < grid_rows ? tops : grid_rows),
                 static_cast<unsigned>((tops + grid_rows - 1) / grid_rows));
  const Grid grid = {all, dim3(Config::kThreads), Config::kShared, stream};
  return cuda::launch(nm_mma_kernel<Config, V, n, m>, grid, d, w, aligned);
}

template <class V>
const char* launch_mma(const Linear& d, const NmView& w, int64_t grid_rows, void* stream) {
  return nm_visit(w.keep, w.group, [&]<int n, int m>() {
    using Size = Sizes<Word<V, n, m>::kSparse>;
    if (d.m <= Few::kColumns) return launch_mma<Few, V, n, m>(d, w, grid_rows, stream);
    if (d.m <= 2 * Some::kColumns) return launch_mma<typename Size::Medium, V, n, m>(d, w, grid_rows, stream);
    return launch_mma<typename Size::Large, V, n, m>(d, w, grid_rows, stream);
  });
}

inline const char* launch_mma(const Linear& d, const NmView& w, int64_t grid_rows, void* stream) {
  return dtype_bytes(w.value) == 2 ? launch_mma<uint16_t>(d, w, grid_rows, stream)
                                   : launch_mma<uint8_t>(d, w, grid_rows, stream);
}

}  // namespace
}  // namespace sparsecore::spmm_nm
