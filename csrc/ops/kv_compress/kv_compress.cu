// SPDX-License-Identifier: Apache-2.0
// kv_compress on CUDA: a warp owns a row, lane l its channels l, 32 + l, ... in registers. As on CPUs the least key that
// is kept is found bit by bit from the highest, each time by a sum over lanes (one instruction, REDUX) of the keys that
// reach a bound; a count that meets `keep` ends the search, as it does after some ten bits of most rows. What is kept
// of 32 channels is then a ballot: their word of the bitmask, and the ranks at which lanes store them side by side.
//
// A row of 128 in bfloat16 is 256 bytes read and some 94 written, 20 cycles of an H100's SM; it takes about 130
// instructions, 33 cycles of its four schedulers: K and V of 32768 tokens of 8 heads in 0.08 ms. Not yet measured on a
// device.
//
// sass kv_compress_kernel: LDG STG REDUX VOTE POPC; no LDL STL
#include "cuda/warp.h"
#include "ops/kv_compress/kv_compress.h"

namespace sparsecore::kv_compress {
namespace {

using namespace cuda;

constexpr int kWarps = 4;
constexpr int kMostWords = 8;

// Number: the integer type of a value's bits; `infinity` is that of its magnitude.
template <class Number>
__global__ void __launch_bounds__(kWarps* kLanes) kv_compress_kernel(Args a, int64_t rows, unsigned infinity) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (row >= rows) return;  // the whole warp
  const int lane = lane_index(), d = static_cast<int>(a.head_dim), words = (d + kLanes - 1) / kLanes;
  const int keep = static_cast<int>(a.keep);
  const Number* const x = static_cast<const Number*>(a.x) + row * a.stride;
  constexpr unsigned kMagnitude = static_cast<Number>(~Number{0}) >> 1;
  Number values[kMostWords];
  unsigned keys[kMostWords];  // 0 past the row, which no bound counts
#pragma unroll
  for (int w = 0; w < kMostWords; ++w) {
    const bool inside = w * kLanes + lane < d;
    values[w] = inside ? x[w * kLanes + lane] : Number{0};
    const unsigned key = values[w] & kMagnitude;
    keys[w] = key > infinity ? infinity + 1 : key;
  }
  // Every lane's keys that reach the bound, together.
  const auto reach = [&](unsigned bound) {
    int count = 0;
#pragma unroll
    for (int w = 0; w < kMostWords; ++w)
      if (w < words) count += keys[w] >= bound;
    return warp_total(count);
  };
  unsigned least = 0;
  int ties = -1;  // of the keys that are `least`, how many are kept; -1: those above are too few, or all are
  for (unsigned bit = (kMagnitude >> 1) + 1; bit != 0; bit >>= 1) {
    const int count = reach(least | bit);
    if (count < keep) continue;
    least |= bit;
    if (count == keep) {
      ties = d;
      break;
    }
  }
  if (ties < 0) ties = keep - reach(least + 1);
  const unsigned before = (1u << lane) - 1;
  Number* const out = static_cast<Number*>(a.values) + row * keep;
  unsigned mine = 0;
  int at = 0;
#pragma unroll
  for (int w = 0; w < kMostWords; ++w) {
    if (w >= words) break;
    const bool tie = w * kLanes + lane < d && keys[w] == least;
    const unsigned tied = warp_ballot(tie);
    const bool take = keys[w] > least || (tie && __popc(tied & before) < ties);
    const unsigned word = warp_ballot(take);
    if (take) out[at + __popc(word & before)] = values[w];
    if (lane == w) mine = word;
    at += __popc(word);
    ties -= __popc(tied);
  }
  if (lane < words) reinterpret_cast<uint32_t*>(a.bitmask)[row * words + lane] = mine;
}

}  // namespace

const char* launch(const Args& a, int64_t rows, void* stream) {
  const int64_t blocks = (rows + kWarps - 1) / kWarps;
  if (blocks > 0x7fffffff) return "x: more rows than a grid holds";
  const Grid grid = {dim3(static_cast<unsigned>(blocks)), dim3(kWarps * kLanes), 0, stream};
  if (a.value == Dtype::f32) return cuda::launch(kv_compress_kernel<uint32_t>, grid, a, rows, 0x7f800000u);
  return cuda::launch(kv_compress_kernel<uint16_t>, grid, a, rows, a.value == Dtype::bf16 ? 0x7f80u : 0x7c00u);
}

}  // namespace sparsecore::kv_compress
