// SPDX-License-Identifier: Apache-2.0
// Sorting in shared memory, by a team.
#pragma once
#include "cuda/team.h"

namespace sparsecore::cuda {

// keys[0, count) to rising order; count: a power of 2. Batcher's bitonic network: runs of `run` rise and fall by turns
// until one is left. Orders memory before it and after it.
template <class Team>
SPARSECORE_DEVICE void sort(unsigned* keys, int count) {
  Team::sync();
  for (int run = 2; run <= count; run *= 2)
    for (int apart = run / 2; apart > 0; apart /= 2) {
      for (int i = Team::rank(); i < count / 2; i += Team::size) {
        const int low = i / apart * (2 * apart) + i % apart, high = low + apart;
        const unsigned a = keys[low], b = keys[high];
        if ((a > b) == ((low & run) == 0)) {
          keys[low] = b;
          keys[high] = a;
        }
      }
      Team::sync();
    }
}

}  // namespace sparsecore::cuda
