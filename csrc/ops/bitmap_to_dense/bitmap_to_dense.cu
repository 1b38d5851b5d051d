// SPDX-License-Identifier: Apache-2.0
// bitmap_to_dense on CUDA: a warp owns a row and goes along k, 128 columns a step. A lane finds the values of its
// four columns by a popcount of the bits before them and writes the four, zeros and all, in one store where the row
// is aligned for it. A first pass over the bits alone, an eighth of a byte a column, tells a broken row before
// anything of it is written. Bound by the writes. Not yet measured on a device.
//
// sass bitmap_to_dense_kernel: POPC SHFL LDG STG; no LDL STL
// sass bitmap_to_dense_kernel: some STG.64 STG.128
#include "ops/bitmap_to_dense/bitmap_to_dense.h"

#include "cuda/bitmap.h"
#include "cuda/convert.h"
#include "cuda/copy.h"

namespace sparsecore::bitmap_to_dense {
namespace {

using namespace cuda;

constexpr int kWarps = 4;

// V to Out: float to float, uint16_t to uint16_t (either 16-bit float, bit for bit), int8_t to float.
template <class Out, class V>
SPARSECORE_DEVICE Out decode(V value, float scale) {
  if constexpr (sizeof(V) == sizeof(Out)) return value;
  else return widen(value) * scale;
}

template <class V, class Out>
__global__ void __launch_bounds__(kWarps* kLanes) bitmap_to_dense_kernel(BitmapView w, Out* dense, Out broken) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (row >= w.n) return;  // the whole warp
  BitmapRow walk;
  walk.open(w, row);
  for (int64_t c = 0; c < w.k; c += kTileColumns) walk.next_tile();
  const bool good = walk.good();
  const float scale = w.scales ? w.scales[row] : 1.0f;
  Out* const out = dense + row * w.k;
  walk.open(w, row);
  for (int64_t c = 0; c < w.k; c += kTileColumns) {
    walk.next_tile();
    for (int s = 0; s < kTileColumns / kStepColumns; ++s) {
      const BitmapStep step = walk.step(s);
      const V* p = static_cast<const V*>(w.values) + walk.begin + step.at;
      Pack<Out, kLaneColumns> four;
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) {
        four.at[j] = good ? Out{} : broken;
        if (good && step.bits >> j & 1) four.at[j] = decode<Out>(*p++, scale);
      }
      const int64_t column = c + s * kStepColumns + lane_index() * kLaneColumns;
      if (column + kLaneColumns <= w.k && pack_aligned<kLaneColumns>(out + column)) {
        store_pack(out + column, four);
      } else {
#pragma unroll
        for (int j = 0; j < kLaneColumns; ++j)
          if (column + j < w.k) out[column + j] = four.at[j];
      }
    }
  }
}

template <class V, class Out>
const char* launch_values(const Args& a, Out broken, void* stream) {
  const int64_t blocks = (a.weight.n + kWarps - 1) / kWarps;
  if (blocks > 0x7fffffff) return "bitmask: more rows than a grid holds";
  const Grid grid = {dim3(static_cast<unsigned>(blocks)), dim3(kWarps * kLanes), 0, stream};
  return cuda::launch(bitmap_to_dense_kernel<V, Out>, grid, a.weight, static_cast<Out*>(a.dense), broken);
}

}  // namespace

const char* launch(const Args& a, void* stream) {
  switch (a.weight.value) {
    case Dtype::bf16:
    case Dtype::f16: return launch_values<uint16_t, uint16_t>(a, 0x7fff, stream);
    case Dtype::i8: return launch_values<int8_t, float>(a, bits_to_f32(0x7fffffffu), stream);
    default: return launch_values<float, float>(a, bits_to_f32(0x7fffffffu), stream);
  }
}

}  // namespace sparsecore::bitmap_to_dense
