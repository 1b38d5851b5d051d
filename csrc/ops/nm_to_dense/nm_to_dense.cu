// SPDX-License-Identifier: Apache-2.0
// nm_to_dense on CUDA: a warp owns a row, a lane 16 bytes of it a step, 8 columns of 16 bits or 4 of fp32. Packed: the
// code of a column's group says which element is the column's, at an address that no other column changes, so zeros
// and values leave in one store. Constant fan-in: 1024 columns are cleared in shared memory, the elements among them
// spread there, and the whole written. A first pass over the positions alone tells a broken row before anything of it
// is written. Bytes of 64 columns, 2:4 bf16: 128 written, 64 + 8 + 8 (positions twice, the second time from the L2
// cache) read; about 1.6 instructions a column, 100 a warp for 512 bytes written. So bound by memory, W of 4096 x 4096
// in bf16 takes 16 us of an H100's 3.35 TB/s. Not yet measured on a device.
//
// sass nm_to_dense_kernel: LDG STG; no LDL STL
// sass nm_to_dense_kernel: some STG.128 LDG.64 LDG.U16 POPC
// sass fan_in_to_dense_kernel: LDG STG STG.128 STS LDS.128 SHFL; no LDL STL
#include "ops/nm_to_dense/nm_to_dense.h"

#include "cuda/nm.h"

namespace sparsecore::nm_to_dense {
namespace {

using namespace cuda;

constexpr int kWarps = 4;
constexpr int kChunk = 1024;  // columns of a constant fan-in in shared memory

// V to Out: float to float, uint16_t to uint16_t (either 16-bit float, bit for bit), int8_t or F8 to float.
template <class Out, class V>
SPARSECORE_DEVICE Out decode(V value, float scale) {
  if constexpr (sizeof(V) == sizeof(Out)) return value;
  else return widen(value) * scale;
}

// W columns of a row from `column` on, those below k.
template <int W, class Out>
SPARSECORE_DEVICE void write(Out* row, int64_t column, int64_t k, const Pack<Out, W>& pack) {
  if (column + W <= k && pack_aligned<W>(row + column)) {
    store_pack(row + column, pack);
  } else {
#pragma unroll
    for (int j = 0; j < W; ++j)
      if (column + j < k) row[column + j] = pack.at[j];
  }
}

template <int n, int m, class V, class Out>
__global__ void __launch_bounds__(kWarps* kLanes) nm_to_dense_kernel(NmView w, Out* dense, Out broken) {
  constexpr int W = 16 / sizeof(Out), kSpan = m > W ? m : W, kCode = static_cast<int>(nm_code(n, m));
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (row >= w.n) return;  // the whole warp
  const uint8_t* const codes = w.codes(row);
  bool bad = false;
  for (int64_t i = lane_index(); i < nm_words(w.k); i += kLanes)
    bad |= !nm_codes_hold<n, m, 64>(nm_codes<n, m, 64>(codes, i * kNmColumns));
  const bool good = !warp_any(bad);
  const float scale = w.scales ? w.scales[row] : 1.0f;
  const V* const values = static_cast<const V*>(w.values) + row * w.row_values();
  Out* const out = dense + row * w.k;
#pragma unroll 2
  for (int64_t column = lane_index() * W; column < w.k; column += W * kLanes) {
    const int64_t first = column / kSpan * kSpan;
    const uint64_t code = nm_codes<n, m, kSpan>(codes, first);
    const V* const p = values + first / m * n;
    int at[W];
    V stored[W];  // loaded before any is used
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const int inside = static_cast<int>(column - first) + j, g = m > W ? 0 : j / m;
      const int r = nm_element<n, m>(static_cast<unsigned>(code >> g * kCode & kLowBits<kCode>), inside - g * m);
      at[j] = r;
      if (r >= 0 && r < n) stored[j] = p[g * n + r];  // a mask with too many bits has no more
    }
    Pack<Out, W> pack;
#pragma unroll
    for (int j = 0; j < W; ++j)
      pack.at[j] = !good ? broken : at[j] >= 0 && at[j] < n ? decode<Out>(stored[j], scale) : Out{};
    write<W>(out, column, w.k, pack);
  }
}

template <class V, class Out>
__global__ void __launch_bounds__(kWarps* kLanes) fan_in_to_dense_kernel(NmView w, Out* dense, Out broken) {
  constexpr int W = 16 / sizeof(Out);
  __shared__ __align__(16) Out chunks[kWarps][kChunk];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (row >= w.n) return;  // the whole warp
  Out* const chunk = chunks[warp_index()];
  FanInRow walk;
  walk.open(w, row);
  walk.below<4>(static_cast<int>(w.k), [](int) { return 0; }, [](int, int) {});
  const bool good = walk.good;
  const float scale = w.scales ? w.scales[row] : 1.0f;
  const V* const values = static_cast<const V*>(w.values) + row * w.keep;
  walk.open(w, row);
  for (int64_t c = 0; c < w.k; c += kChunk) {
    Pack<Out, W> clear;
#pragma unroll
    for (int j = 0; j < W; ++j) clear.at[j] = good ? Out{} : broken;
#pragma unroll
    for (int j = lane_index() * W; j < kChunk; j += W * kLanes) store_pack(chunk + j, clear);
    warp_sync();
    if (good)
      walk.below<4>(
          static_cast<int>(c + kChunk < w.k ? c + kChunk : w.k), [&](int element) { return values[element]; },
          [&](int column, V value) { chunk[column - c] = decode<Out>(value, scale); });
    warp_sync();
#pragma unroll
    for (int j = lane_index() * W; j < kChunk; j += W * kLanes)
      if (c + j < w.k) write<W>(dense + row * w.k, c + j, w.k, load_pack<W>(chunk + j));
    warp_sync();
  }
}

template <class V, class Out>
const char* launch_values(const Args& a, Out broken, void* stream) {
  const NmView& w = a.weight;
  const int64_t blocks = w.k > 0 ? (w.n + kWarps - 1) / kWarps : 0;
  if (blocks > 0x7fffffff) return "values: more rows than a grid holds";
  const Grid grid = {dim3(static_cast<unsigned>(blocks)), dim3(kWarps * kLanes), 0, stream};
  Out* const dense = static_cast<Out*>(a.dense);
  if (!w.packed()) return cuda::launch(fan_in_to_dense_kernel<V, Out>, grid, w, dense, broken);
  return nm_visit(w.keep, w.group, [&]<int n, int m>() {
    return cuda::launch(nm_to_dense_kernel<n, m, V, Out>, grid, w, dense, broken);
  });
}

}  // namespace

const char* launch(const Args& a, void* stream) {
  const float nan = bits_to_f32(0x7fffffffu);
  switch (a.weight.value) {
    case Dtype::bf16:
    case Dtype::f16: return launch_values<uint16_t, uint16_t>(a, 0x7fff, stream);
    case Dtype::i8: return launch_values<int8_t, float>(a, nan, stream);
    case Dtype::f8: return launch_values<F8, float>(a, nan, stream);
    default: return launch_values<float, float>(a, nan, stream);
  }
}

}  // namespace sparsecore::nm_to_dense
