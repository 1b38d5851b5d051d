// SPDX-License-Identifier: Apache-2.0
// spmm_bitmap on CUDA, for few rows of x: a warp owns R rows of W and M rows of x and goes along k, 1024 columns a
// tile. The block's warps share x's tile in shared memory, in fp32. A lane owns every fourth column group of 4 and
// finds its values by a popcount of the bits before them, so W is read once, front to back, with no index array.
// More rows of x are taken M at a time by blocks beside each other, which find W in the L2 cache; past some 32 rows
// a dense product would be faster. A row's sum has one order: its bits depend on neither grid nor device.
// Not yet measured on a device: R and M are choices, not findings.
//
// sass spmm_bitmap_kernel: POPC SHFL LDG LDS.128 FFMA BAR.SYNC; no LDL STL
#include "ops/spmm_bitmap/spmm_bitmap.h"

#include "cuda/bitmap.h"
#include "cuda/block.h"
#include "cuda/convert.h"
#include "cuda/copy.h"

namespace sparsecore::spmm_bitmap {
namespace {

using namespace cuda;

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kLanes;
constexpr int kGridRows = 65535;  // most blocks along y

// V: float, Bf16, F16, int8_t.
template <class V, int M, int R>
__global__ void __launch_bounds__(kThreads, 2) spmm_bitmap_kernel(Linear d, BitmapView w) {
  float* const x = dynamic_shared<float>();  // [M][kTileColumns], 0 beyond m and k
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kWarps + warp_index()) * R;
  const V* const values = static_cast<const V*>(w.values);
  constexpr int kSteps = M * R == 1 ? 2 : 1;  // unrolled: enough loads under way, few enough registers

  for (int64_t top = static_cast<int64_t>(blockIdx.y) * M; top < d.m; top += static_cast<int64_t>(gridDim.y) * M) {
    BitmapRow rows[R];
    float sums[R][M] = {};
#pragma unroll
    for (int r = 0; r < R; ++r) rows[r].open(w, first + r);

    for (int64_t c = 0; c < d.k; c += kTileColumns) {
      block_sync();  // the tile before has been read
#pragma unroll 4
      for (int j = static_cast<int>(threadIdx.x); j < M * kTileColumns; j += kThreads) {
        const int64_t i = top + j / kTileColumns, column = c + j % kTileColumns;
        x[j] = i < d.m && column < d.k ? load_float(d.x, d.dtype, i * d.x_stride + column) : 0.0f;
      }
      block_sync();
#pragma unroll
      for (int r = 0; r < R; ++r) rows[r].next_tile();
#pragma unroll kSteps
      for (int s = 0; s < kTileColumns / kStepColumns; ++s) {
        Pack<float, kLaneColumns> in[M];
#pragma unroll
        for (int i = 0; i < M; ++i)
          in[i] = load_pack<kLaneColumns>(x + i * kTileColumns + s * kStepColumns + lane_index() * kLaneColumns);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const BitmapStep step = rows[r].step(s);
          const V* p = values + rows[r].begin + step.at;
          V stored[kLaneColumns];  // loaded before any is used
#pragma unroll
          for (int j = 0; j < kLaneColumns; ++j)
            if (step.bits >> j & 1) stored[j] = *p++;
#pragma unroll
          for (int j = 0; j < kLaneColumns; ++j)
            if (step.bits >> j & 1) {  // an element that is not stored takes no part: no product with 0
              const float v = widen(stored[j]);
#pragma unroll
              for (int i = 0; i < M; ++i) sums[r][i] = fmaf(v, in[i].at[j], sums[r][i]);
            }
        }
      }
    }

    // Lane r * M + i finishes y[top + i, first + r].
    static_assert(R * M <= kLanes);
    float mine = 0.0f;
    bool good = true;
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int i = 0; i < M; ++i) {
        const float sum = warp_sum(sums[r][i]);
        if (lane_index() == r * M + i) mine = sum;
      }
      good &= rows[r].good() | (lane_index() / M != r);
    }
    const int64_t row = first + lane_index() / M, i = top + lane_index() % M;
    if (lane_index() < R * M && row < d.n && i < d.m) {
      const float scale = w.scales ? w.scales[row] : 1.0f;
      const float bias = d.bias ? load_float(d.bias, d.dtype, row) : 0.0f;
      store_float(d.y, d.dtype, i * d.y_stride + row, good ? mine * scale + bias : __uint_as_float(0x7fffffffu));
    }
  }
}

template <class V, int M, int R>
const char* launch_rows(const Linear& d, const BitmapView& w, void* stream) {
  const int64_t blocks = (d.n + kWarps * R - 1) / (kWarps * R), tops = (d.m + M - 1) / M;
  if (blocks > 0x7fffffff) return "out_features: more than a grid holds";
  const Grid grid = {dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(tops < kGridRows ? tops : kGridRows)),
                     dim3(kThreads), int64_t{M} * kTileColumns * int64_t{sizeof(float)}, stream};
  return cuda::launch(spmm_bitmap_kernel<V, M, R>, grid, d, w);
}

template <class V>
const char* launch_values(const Linear& d, const BitmapView& w, void* stream) {
  if (d.m <= 1) return launch_rows<V, 1, 1>(d, w, stream);
  if (d.m <= 2) return launch_rows<V, 2, 2>(d, w, stream);
  if (d.m <= 4) return launch_rows<V, 4, 2>(d, w, stream);
  return launch_rows<V, 8, 2>(d, w, stream);
}

}  // namespace

const char* launch(const Linear& d, const BitmapView& w, void* stream) {
  switch (w.value) {
    case Dtype::bf16: return launch_values<Bf16>(d, w, stream);
    case Dtype::f16: return launch_values<F16>(d, w, stream);
    case Dtype::i8: return launch_values<int8_t>(d, w, stream);
    default: return launch_values<float>(d, w, stream);
  }
}

}  // namespace sparsecore::spmm_bitmap
