// SPDX-License-Identifier: Apache-2.0
// Threads that make one thing together, a warp or a block, by the same words, so that a kernel is written once for
// both. Every function is called by all threads of the team.
//
//   size, rank()             threads, and which of them this one is
//   index(), count()         which team of the grid, of how many; in_block(): which of its block's
//   sync(), any()            as warp_sync and warp_any, block_sync and block_any
//   least(), exclusive_sum() as warp's and block's
//   in_turn(key, act)        act() by every thread with key >= 0; threads of one key one after the other, in the order
//                            of ranks, each seeing what those before it wrote
#pragma once
#include "cuda/block.h"

namespace sparsecore::cuda {

struct WarpTeam {
  static constexpr int size = kLanes;
  SPARSECORE_DEVICE static int rank() { return lane_index(); }
  SPARSECORE_DEVICE static int in_block() { return warp_index(); }
  SPARSECORE_DEVICE static int64_t index() {
    return static_cast<int64_t>(blockIdx.x) * (blockDim.x / kLanes) + in_block();
  }
  SPARSECORE_DEVICE static int64_t count() { return static_cast<int64_t>(gridDim.x) * (blockDim.x / kLanes); }
  SPARSECORE_DEVICE static void sync() { warp_sync(); }
  SPARSECORE_DEVICE static bool any(bool condition) { return warp_any(condition); }
  template <class T>
  SPARSECORE_DEVICE static T least(T value) {
    return warp_least(value);
  }
  template <class T>
  SPARSECORE_DEVICE static T exclusive_sum(T value, T& total) {
    return warp_exclusive_sum(value, total);
  }
  template <class Act>
  SPARSECORE_DEVICE static void in_turn(int key, const Act& act) {
    take_turns(turn_of(key), act);
  }

  // How many lanes before this one have its key; -1 without a key.
  SPARSECORE_DEVICE static int turn_of(int key) {
    const unsigned same = warp_match(key >= 0 ? key : -1 - lane_index());
    return key >= 0 ? __popc(same & ((1u << lane_index()) - 1)) : -1;
  }
  template <class Act>
  SPARSECORE_DEVICE static void take_turns(int turn, const Act& act) {
    for (int now = 0; warp_any(turn >= now); ++now) {
      if (turn == now) act();
      warp_sync();
    }
  }
};

template <int Threads>
struct BlockTeam {
  static constexpr int size = Threads;
  SPARSECORE_DEVICE static int rank() { return static_cast<int>(threadIdx.x); }
  SPARSECORE_DEVICE static int in_block() { return 0; }
  SPARSECORE_DEVICE static int64_t index() { return blockIdx.x; }
  SPARSECORE_DEVICE static int64_t count() { return gridDim.x; }
  SPARSECORE_DEVICE static void sync() { block_sync(); }
  SPARSECORE_DEVICE static bool any(bool condition) { return block_any(condition); }
  template <class T>
  SPARSECORE_DEVICE static T least(T value) {
    return block_least(value);
  }
  template <class T>
  SPARSECORE_DEVICE static T exclusive_sum(T value, T& total) {
    return block_exclusive_sum(value, total);
  }
  // A warp after the other.
  template <class Act>
  SPARSECORE_DEVICE static void in_turn(int key, const Act& act) {
    const int turn = WarpTeam::turn_of(key);
    for (int warp = 0; warp < Threads / kLanes; ++warp) {
      if (warp == warp_index()) WarpTeam::take_turns(turn, act);
      block_sync();
    }
  }
};

}  // namespace sparsecore::cuda
