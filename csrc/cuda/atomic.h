// SPDX-License-Identifier: Apache-2.0
// Atomics on shared and global memory, relaxed: they order nothing but the word itself.
#pragma once
#include "cuda/ptx.h"

namespace sparsecore::cuda {

// What *p holds, where others may be changing it by atomics.
template <class T>
SPARSECORE_DEVICE T atomic_load(const T* p) {
  return ptx::load_relaxed(p);
}

// *p += value; returns what was there. int, unsigned, float, double, unsigned long long.
template <class T>
SPARSECORE_DEVICE T atomic_add(T* p, T value) {
  return atomicAdd(p, value);
}

// *p |= value; returns what was there. int, unsigned, unsigned long long.
template <class T>
SPARSECORE_DEVICE T atomic_or(T* p, T value) {
  return atomicOr(p, value);
}

// The lesser, the greater of *p and value; returns what was there. int, unsigned, unsigned long long.
template <class T>
SPARSECORE_DEVICE T atomic_least(T* p, T value) {
  return atomicMin(p, value);
}
template <class T>
SPARSECORE_DEVICE T atomic_most(T* p, T value) {
  return atomicMax(p, value);
}

// *p = value if it is `expected`; returns what was there. int, unsigned, unsigned long long.
template <class T>
SPARSECORE_DEVICE T atomic_swap_if(T* p, T expected, T value) {
  return atomicCAS(p, expected, value);
}

}  // namespace sparsecore::cuda
