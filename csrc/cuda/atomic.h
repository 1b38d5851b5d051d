// SPDX-License-Identifier: Apache-2.0
// Atomics on shared and global memory, relaxed: they order nothing but the word itself.
#pragma once
#include "cuda/launch.h"

namespace sparsecore::cuda {

// *p += value; returns what was there. int, unsigned, float, double, unsigned long long.
template <class T>
SPARSECORE_DEVICE T atomic_add(T* p, T value) {
  return atomicAdd(p, value);
}

// *p = value if it is `expected`; returns what was there. int, unsigned, unsigned long long.
template <class T>
SPARSECORE_DEVICE T atomic_swap_if(T* p, T expected, T value) {
  return atomicCAS(p, expected, value);
}

}  // namespace sparsecore::cuda
