// SPDX-License-Identifier: Apache-2.0
// A row of K or V to bits and values (core/kv.h), by a warp: lane l holds channels l, 32 + l, ... in registers, with
// keys as ops/kv_compress/kv_compress.h has them: magnitudes, or those of products with weights. As on CPUs the least key that is kept is found bit by bit from the highest, each time by a sum over lanes (one instruction,
// REDUX) of the keys that reach a bound; a count that meets `keep` ends the search, as it does after some ten bits of
// most rows. What is kept of 32 channels is then a ballot: their word of the bitmask, and the ranks at which lanes store
// them side by side. A row of 128 takes about 130 instructions.
#pragma once
#include "core/kv.h"
#include "cuda/convert.h"
#include "cuda/warp.h"

namespace sparsecore::cuda {

SPARSECORE_DEVICE float kv_number(uint32_t bits, Dtype) { return __uint_as_float(bits); }
SPARSECORE_DEVICE float kv_number(uint16_t bits, Dtype value) {
  return value == Dtype::bf16 ? widen(Bf16{bits}) : widen(F16{bits});
}

// Number: the integer type of a value's bits. x [d], weight [d] or null, bits [words], out [keep].
template <class Number>
SPARSECORE_DEVICE void kv_compress_row(const Number* x, Dtype value, const float* weight, int d, int keep,
                                       uint32_t* bits, Number* out) {
  constexpr int kMostWords = 8;
  const int lane = lane_index(), words = (d + kLanes - 1) / kLanes;
  const Dtype compared = weight ? Dtype::f32 : value;
  const unsigned infinity = kv_infinity(compared), magnitude = compared == Dtype::f32 ? 0x7fffffffu : 0x7fffu;
  Number values[kMostWords];
  unsigned keys[kMostWords];  // 0 past the row, which no bound counts
#pragma unroll
  for (int w = 0; w < kMostWords; ++w) {
    const bool inside = w * kLanes + lane < d;
    values[w] = inside ? x[w * kLanes + lane] : Number{0};
    unsigned key = values[w];
    if (weight && inside) key = __float_as_uint(kv_number(values[w], value) * weight[w * kLanes + lane]);
    key &= magnitude;
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
  for (unsigned bit = (magnitude >> 1) + 1; bit != 0; bit >>= 1) {
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
  if (lane < words) bits[lane] = mine;
}

}  // namespace sparsecore::cuda
