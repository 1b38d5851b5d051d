// SPDX-License-Identifier: Apache-2.0
// A block of up to 1024 threads together. Every function is called by all threads of the block.
#pragma once
#include "cuda/warp.h"

namespace sparsecore::cuda {

// Waits for all threads; orders their memory accesses before it with those after it.
SPARSECORE_DEVICE void block_sync() { __syncthreads(); }

// Whether any thread's condition holds. Orders memory as block_sync does.
SPARSECORE_DEVICE bool block_any(bool condition) { return __syncthreads_or(condition) != 0; }

// Sum over the threads before this one; `total` over all of them. Each warp sums itself, then every warp sums
// the warps. Orders memory as block_sync does. int, int64_t.
template <class T>
SPARSECORE_DEVICE T block_exclusive_sum(T value, T& total) {
  __shared__ T warps[kLanes];
  T warp_total;
  const T before = warp_exclusive_sum(value, warp_total);
  __syncthreads();  // readers of the call before are done
  if (lane_index() == 0) warps[warp_index()] = warp_total;
  __syncthreads();
  const int count = static_cast<int>(blockDim.x) / kLanes;
  const T own = lane_index() < count ? warps[lane_index()] : T{0};
  const T warps_before = warp_exclusive_sum(own, total);
  return before + warp_shuffle(warps_before, warp_index());
}

// The least over threads. Orders memory as block_sync does.
template <class T>
SPARSECORE_DEVICE T block_least(T value) {
  __shared__ T warps[kLanes];
  const T least = warp_least(value);
  __syncthreads();  // readers of the call before are done
  if (lane_index() == 0) warps[warp_index()] = least;
  __syncthreads();
  const int count = static_cast<int>(blockDim.x) / kLanes;
  return warp_least(warps[lane_index() < count ? lane_index() : 0]);
}

}  // namespace sparsecore::cuda
