// SPDX-License-Identifier: Apache-2.0
// Working memory of an op. Pages are left to the system: asking for 2 MiB ones (madvise) made a product of
// 240 MB 2.3 times as slow where memory was fragmented, as faults then wait for pages to be joined.
#pragma once
#include <sys/sysinfo.h>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "torch/stable.h"

namespace sparsecore::binding {

using Memory = std::unique_ptr<char, decltype(&std::free)>;

// 64-byte aligned, at least one byte; throws when there is none.
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
