// SPDX-License-Identifier: Apache-2.0
// Several elements a memory access, and copies that run beside the thread.
#pragma once
#include "cuda/ptx.h"

namespace sparsecore::cuda {

// N elements that lie together, loaded and stored by one instruction where N * sizeof(T) is 4, 8 or 16.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

template <int N, class T>
SPARSECORE_DEVICE bool pack_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (sizeof(T) * N) == 0;
}

template <int N, class T>
SPARSECORE_DEVICE Pack<T, N> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}

template <int N, class T>
SPARSECORE_DEVICE void store_pack(T* p, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

// Starts copying Bytes (4, 8 or 16, the alignment of both sides) from global to shared memory; bytes past the first
// `valid` become 0 and are not read. The thread that asked sees them after async_wait, others after a barrier too.
template <int Bytes>
SPARSECORE_DEVICE void async_copy(void* shared, const void* global, int valid = Bytes) {
  ptx::cp_async<Bytes>(shared, global, valid);
}

// Closes the group of copies begun since the last call.
SPARSECORE_DEVICE void async_commit() { ptx::cp_async_commit(); }

// Waits until at most `Pending` of this thread's groups, the youngest, are under way.
template <int Pending>
SPARSECORE_DEVICE void async_wait() {
  ptx::cp_async_wait<Pending>();
}

}  // namespace sparsecore::cuda
