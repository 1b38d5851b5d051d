// SPDX-License-Identifier: Apache-2.0
// Working memory of an op, and pages for what it gives.
#pragma once
#include <sys/mman.h>
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

// Asks for 2 MiB pages under a large output before it is first written, as NumPy does for its arrays. To fault in
// 64 MiB took 29 ms by pages of 4 KiB and 10 by these on an Ice Lake Xeon under a hypervisor; A·A of email-Enron
// (244 MB) in float32 370 and 265 ms, in turns. Memory that the guest had never touched costs more this way, once
// (121 ms for 64 MiB).
inline void large_pages(void* memory, int64_t bytes) {
  constexpr uintptr_t kPage = 4096;
  if (bytes < (4 << 20)) return;
  const uintptr_t at = reinterpret_cast<uintptr_t>(memory), begin = (at + kPage - 1) / kPage * kPage;
  const uintptr_t end = (at + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a wish: the system may have none
}

inline int64_t free_bytes() {
  struct sysinfo info;
  if (sysinfo(&info) != 0) return int64_t{1} << 30;
  return static_cast<int64_t>(info.freeram + info.bufferram) * static_cast<int64_t>(info.mem_unit);
}

}  // namespace sparsecore::binding
