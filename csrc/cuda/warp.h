// SPDX-License-Identifier: Apache-2.0
// A warp of 32 lanes together. Every function is called by all 32 lanes; none orders memory but sync.
// Blocks are one-dimensional and a multiple of 32 threads.
#pragma once
#include "cuda/launch.h"

namespace sparsecore::cuda {

constexpr int kLanes = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

SPARSECORE_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % kLanes; }
SPARSECORE_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) / kLanes; }

// Orders the lanes' memory accesses before it with those after it.
SPARSECORE_DEVICE void warp_sync() { __syncwarp(kAllLanes); }

// value of lane `from`.
template <class T>
SPARSECORE_DEVICE T warp_shuffle(T value, int from) {
  return __shfl_sync(kAllLanes, value, from);
}

// value of the lane whose number differs in these bits.
template <class T>
SPARSECORE_DEVICE T warp_exchange(T value, int bits) {
  return __shfl_xor_sync(kAllLanes, value, bits);
}

// value of the lane so many before this one; one's own where there is none.
template <class T>
SPARSECORE_DEVICE T warp_before(T value, int lanes) {
  return __shfl_up_sync(kAllLanes, value, lanes);
}

// Bit l: whether lane l's condition holds.
SPARSECORE_DEVICE unsigned warp_ballot(bool condition) { return __ballot_sync(kAllLanes, condition); }
SPARSECORE_DEVICE bool warp_any(bool condition) { return __any_sync(kAllLanes, condition); }

// Bit l: whether lane l holds the same key.
template <class T>
SPARSECORE_DEVICE unsigned warp_match(T key) {
  return __match_any_sync(kAllLanes, key);
}

// Sum over lanes, the same bits in every lane: a butterfly adds each pair once, and a + b is b + a.
template <class T>
SPARSECORE_DEVICE T warp_sum(T value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// The same of an int, in one instruction.
SPARSECORE_DEVICE int warp_total(int value) { return __reduce_add_sync(kAllLanes, value); }

// The least over lanes.
template <class T>
SPARSECORE_DEVICE T warp_least(T value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, step);
    value = other < value ? other : value;
  }
  return value;
}

// Sum over the lanes before this one; `total` over all of them. int, int64_t.
template <class T>
SPARSECORE_DEVICE T warp_exclusive_sum(T value, T& total) {
  T sum = value;
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const T before = __shfl_up_sync(kAllLanes, sum, step);
    if (lane_index() >= step) sum += before;
  }
  total = __shfl_sync(kAllLanes, sum, kLanes - 1);
  return sum - value;
}

}  // namespace sparsecore::cuda
