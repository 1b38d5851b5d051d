// SPDX-License-Identifier: Apache-2.0
// Working memory of an op.
#pragma once
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "torch/stable.h"

namespace sparsecore::binding {

using Memory = std::unique_ptr<char, decltype(&std::free)>;

// Pages of 2 MiB for a block that is large and not yet written: 4 KiB ones cost 0.25 us of kernel time each.
inline void use_large_pages(void* data, int64_t bytes) {
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

// At least one byte, 64-byte aligned within what was allocated by the caller's own rounding; throws when
// there is none.
inline Memory reserve(int64_t bytes) {
  Memory memory(static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(bytes / 64 + 1) * 64)), &std::free);
  SPARSECORE_REQUIRE(memory, "memory: there are no ", bytes, " bytes of working space");
  return memory;
}

// The same, all zeros; large blocks are touched only where they are used.
inline Memory reserve_zeros(int64_t bytes) {
  Memory memory(static_cast<char*>(std::calloc(static_cast<size_t>(bytes) + 64, 1)), &std::free);
  SPARSECORE_REQUIRE(memory, "memory: there are no ", bytes, " bytes of working space");
  return memory;
}
inline char* aligned(const Memory& memory) {
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.get()) + 63) / 64 * 64);
}

inline int64_t free_bytes() {
  struct sysinfo info;
  if (sysinfo(&info) != 0) return int64_t{1} << 30;
  return static_cast<int64_t>(info.freeram + info.bufferram) * static_cast<int64_t>(info.mem_unit);
}

}  // namespace sparsecore::binding
