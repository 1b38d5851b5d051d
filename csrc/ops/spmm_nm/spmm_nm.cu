// SPDX-License-Identifier: Apache-2.0
// spmm_nm on CUDA. Where x has 16 bits and its dtype holds what a packed W stores, tensor cores: see
// spmm_nm_cuda_mma.h. Else fused multiply-adds:
//   nm_rows_kernel   packed groups. A warp owns R rows of W and M rows of x; `split` warps share these rows and take
//                    turns along k, so that a small W fills the device. A lane takes 16 columns (64 of 1:8 and 1:16):
//                    its positions in one load, its values in as few as 16 bytes a load allow, its sums' x from shared
//                    memory at the positions, M rows of x side by side, so that one load serves M products.
//   fan_in_kernel    constant fan-in. A warp owns a row; 128 elements' values and columns are loaded at once.
// W is read once, front to back. More rows of x are taken M at a time by blocks beside each other, which find W in the
// L2 cache. A row's sum has one order, which shapes alone choose.
// Bytes of 64 columns of a row, 2:4: 128 of fp32 values, 8 of positions; each of the 32 takes a load of M floats from
// shared memory, some 3 cycles of an SM for 32 lanes at random banks. An H100 gives an SM 14 bytes a
// cycle: with M = 1 its memory is the limit (4096 x 4096 in 11 us), from M = 4 on shared memory is.
// Past some 16 rows of x in fp32 a dense product is faster. Not yet measured on a device: R, M and split are choices.
//
// sass nm_mma_kernel: LDG LDGSTS LDSM.16.M88.4 BAR.SYNC; no LDL STL
// sass nm_mma_kernel: some HMMA.SP.16832.F32.BF16 HMMA.SP.16832.F32 HMMA.16816.F32.BF16 HMMA.16816.F32 LDG.128 LDG.64
// sass nm_rows_kernel: LDG LDS FFMA SHFL BAR.SYNC; no LDL STL
// sass nm_rows_kernel: some LDG.128 LDG.64 LDS.128
// sass fan_in_kernel: LDG LDS FFMA SHFL VOTE BAR.SYNC; no LDL STL
#include "cuda/block.h"
#include "ops/spmm_nm/spmm_nm_cuda_elements.h"
#include "ops/spmm_nm/spmm_nm_cuda_mma.h"

namespace sparsecore::spmm_nm {
namespace {

using namespace cuda;

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kLanes;
constexpr int kRows = 2;  // R
constexpr int kBlocks = 264;  // as many keep an H100's 132 SMs busy
constexpr int kGridRows = 65535;  // most blocks along y

// Rows [top, top + M) of x, columns [begin, begin + width), to x in fp32: column c of the M at `place(c)`; 0 past m, k.
template <int M, class Place>
SPARSECORE_DEVICE void load_x(const Linear& d, int64_t top, int64_t begin, int width, float* x, const Place& place) {
#pragma unroll 4
  for (int j = static_cast<int>(threadIdx.x); j < M * width; j += kThreads) {
    const int64_t i = top + j / width, column = begin + j % width;
    x[place(j % width) + j / width] =
        i < d.m && column < d.k ? load_float(d.x, d.dtype, i * d.x_stride + column) : 0.0f;
  }
}

template <int n, int m>
constexpr int kLaneColumns = m >= 8 && n == 1 ? 64 : 16;

// Columns of a tile of x: 32 KiB of it, and a chunk a lane at least.
template <int C, int M>
constexpr int kTileColumns = 8192 / M > C* kLanes ? 8192 / M : C * kLanes;

// Chunks of C columns lie 4 floats apart: 8 lanes then meet different banks, whichever of 4 columns each wants.
template <int C, int M>
SPARSECORE_DEVICE int place_of(int column) {
  return column / C * (C * M + 4) + column % C * M;
}

template <class V, int n, int m, int M>
__global__ void __launch_bounds__(kThreads, 2) nm_rows_kernel(Linear d, NmView w, int split) {
  constexpr int R = kRows, C = kLaneColumns<n, m>, Q = C / m * n, kTile = kTileColumns<C, M>;
  __shared__ float partial[kWarps][R * M + R];  // sums, and whether a row is bad
  float* const x = dynamic_shared<float>();
  const int part = warp_index() % split, lane = lane_index();
  const int64_t padded = nm_words(d.k) * kNmColumns;  // padding has positions too, to be checked
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * (kWarps / split) + warp_index() / split) * R;
  const V* values[R];
  const uint8_t* codes[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int64_t row = first + r < w.n ? first + r : w.n - 1;
    values[r] = static_cast<const V*>(w.values) + row * w.row_values();
    codes[r] = w.codes(row);
  }

  for (int64_t top = static_cast<int64_t>(blockIdx.y) * M; top < d.m; top += static_cast<int64_t>(gridDim.y) * M) {
    float sums[R][M] = {};
    bool bad[R] = {};
    for (int64_t begin = 0; begin < d.k; begin += kTile) {
      block_sync();  // the tile before has been read
      load_x<M>(d, top, begin, kTile, x, place_of<C, M>);
      block_sync();
#pragma unroll 2
      for (int chunk = part * kLanes + lane; chunk < kTile / C; chunk += split * kLanes) {
        const int64_t column = begin + chunk * C;
        if (column >= padded) break;
        V stored[R][Q];
        uint64_t code[R];
#pragma unroll
        for (int r = 0; r < R; ++r) {
          load_all(values[r] + column / m * n, stored[r]);
          code[r] = nm_codes<n, m, C>(codes[r], column);
        }
        const float* const here = x + chunk * (C * M + 4);
        const int live = d.k - column < C ? static_cast<int>(d.k - column) : C;
#pragma unroll
        for (int r = 0; r < R; ++r) {
          bad[r] |= !nm_codes_hold<n, m, C>(code[r]);
          nm_each<n, m, C>(code[r], [&](int c, int q) {
            if (c >= live) return;
            const float v = widen_as(stored[r][q], w.value);
            const Pack<float, M> in = load_pack<M>(here + c * M);
#pragma unroll
            for (int i = 0; i < M; ++i) sums[r][i] = fmaf(v, in.at[i], sums[r][i]);
          });
        }
      }
    }

#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int i = 0; i < M; ++i) {
        const float sum = warp_sum(sums[r][i]);
        if (lane == 0) partial[warp_index()][r * M + i] = sum;
      }
      const bool any = warp_any(bad[r]);
      if (lane == 0) partial[warp_index()][R * M + r] = any ? 1.0f : 0.0f;
    }
    block_sync();
    // Lane r * M + i of the first of the warps that share rows finishes y[top + i, first + r].
    const int r = lane / M, i = lane % M;
    if (part == 0 && lane < R * M && first + r < w.n && top + i < d.m) {
      float sum = 0.0f, broken = 0.0f;
      for (int p = 0; p < split; ++p) {
        sum += partial[warp_index() + p][lane];
        broken += partial[warp_index() + p][R * M + r];
      }
      finish(d, w, top + i, first + r, broken == 0.0f, sum);
    }
    block_sync();  // partial has been read
  }
}

template <class V, int M>
__global__ void __launch_bounds__(kThreads) fan_in_kernel(Linear d, NmView w) {
  constexpr int kTile = 8192 / M;
  float* const x = dynamic_shared<float>();  // [kTile][M]
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  const V* const values = static_cast<const V*>(w.values) + row * w.keep;
  for (int64_t top = static_cast<int64_t>(blockIdx.y) * M; top < d.m; top += static_cast<int64_t>(gridDim.y) * M) {
    FanInRow walk;
    walk.open(w, row);
    if (row >= w.n) walk.keep = 0;
    float sums[M] = {};
    for (int64_t begin = 0; begin < d.k; begin += kTile) {
      block_sync();  // the tile before has been read
      load_x<M>(d, top, begin, kTile, x, [](int c) { return c * M; });
      block_sync();
      walk.template below<4>(
          static_cast<int>(begin + kTile < d.k ? begin + kTile : d.k), [&](int element) { return values[element]; },
          [&](int column, V stored) {
            const float v = widen_as(stored, w.value);
            const Pack<float, M> in = load_pack<M>(x + (column - begin) * M);
#pragma unroll
            for (int i = 0; i < M; ++i) sums[i] = fmaf(v, in.at[i], sums[i]);
          });
    }
    float mine = 0.0f;
#pragma unroll
    for (int i = 0; i < M; ++i) {
      const float sum = warp_sum(sums[i]);
      if (lane_index() == i) mine = sum;
    }
    if (lane_index() < M && row < w.n && top + lane_index() < d.m)
      finish(d, w, top + lane_index(), row, walk.good && walk.at == walk.keep, mine);
  }
}

template <class V, int M>
const char* launch_rows(const Linear& d, const NmView& w, void* stream) {
  const int64_t tops = (d.m + M - 1) / M;
  const auto grid = [&](int64_t rows, int64_t floats) -> Grid {
    return {dim3(static_cast<unsigned>((d.n + rows - 1) / rows),
                 static_cast<unsigned>(tops < kGridRows ? tops : kGridRows)),
            dim3(kThreads), floats * int64_t{sizeof(float)}, stream};
  };
  if (!w.packed()) return cuda::launch(fan_in_kernel<V, M>, grid(kWarps, 8192), d, w);
  return nm_visit(w.keep, w.group, [&]<int n, int m>() {
    constexpr int C = kLaneColumns<n, m>, kTile = kTileColumns<C, M>;
    int split = 1;
    while (split < kWarps && split * kLanes * C < d.k && d.n * split < int64_t{kBlocks} * kWarps * kRows) split *= 2;
    return cuda::launch(nm_rows_kernel<V, n, m, M>, grid(kWarps / split * kRows, kTile / C * (C * M + 4)), d, w, split);
  });
}

template <class V>
const char* launch_values(const Linear& d, const NmView& w, void* stream) {
  if (d.m <= 1) return launch_rows<V, 1>(d, w, stream);
  return launch_rows<V, 4>(d, w, stream);
}

}  // namespace

const char* launch(const Linear& d, const NmView& w, void* stream) {
  if (d.m == 0) return nullptr;
  if ((d.n + kRows - 1) / kRows > 0x7fffffff) return "out_features: more than a grid holds";
  if (takes_mma(d, w)) return launch_mma(d, w, kGridRows, stream);
  switch (w.value) {
    case Dtype::bf16:
    case Dtype::f16: return launch_values<uint16_t>(d, w, stream);
    case Dtype::i8:
    case Dtype::f8: return launch_values<uint8_t>(d, w, stream);
    default: return launch_values<float>(d, w, stream);
  }
}

}  // namespace sparsecore::spmm_nm
