// SPDX-License-Identifier: Apache-2.0
// Working memory of an op, and pages for what it gives.
#pragma once
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "torch/arguments.h"

// Of torch 2.11; null before. Headers for 2.10 do not declare it.
extern "C" [[gnu::weak]] AOTITorchError torch_from_blob(void* data, int64_t ndim, const int64_t* sizes,
                                                        const int64_t* strides, int64_t storage_offset, int32_t dtype,
                                                        int32_t device_type, int32_t device_index,
                                                        AtenTensorHandle* made, int32_t layout,
                                                        const uint8_t* opaque_metadata, int64_t opaque_metadata_size,
                                                        void (*deleter)(void* data, void* context), void* context);

namespace sparsecore::binding {

using Memory = std::unique_ptr<char, decltype(&std::free)>;

// 64-byte aligned, at least one byte; null when there is none.
inline Memory try_reserve(int64_t bytes) {
  return {static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(bytes / 64 + 1) * 64)), &std::free};
}

// The same; throws.
inline Memory reserve(int64_t bytes) {
  Memory memory = try_reserve(bytes);
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

constexpr uintptr_t kPage = 4096;

// madvise for the pages that lie whole in memory past its first `skip` bytes: a wish, the system may have none.
inline void advise(void* memory, int64_t skip, int64_t bytes, int advice) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t begin = (at + static_cast<uintptr_t>(skip) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (at + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

// Asks for 2 MiB pages under a large output before it is first written, as NumPy does for its arrays. To fault in
// 64 MiB took 29 ms by pages of 4 KiB and 10 by these on an Ice Lake Xeon under a hypervisor; A·A of email-Enron
// (244 MB) in float32 370 and 265 ms, in turns. Memory that the guest had never touched costs more this way, once
// (121 ms for 64 MiB). `skip`: of a room that may not be filled, so much is left out, for a page that is only begun
// counts whole.
inline void large_pages(void* memory, int64_t bytes, int64_t skip) {
  if (bytes >= (4 << 20)) advise(memory, skip, bytes, MADV_HUGEPAGE);
}
// Ends that wish once the output is written. In glibc's heap it would outlive the output: a later one of 0.6 MB there
// took 2.9.
inline void small_pages(void* memory, int64_t bytes) {
  if (bytes >= (4 << 20)) advise(memory, 0, bytes, MADV_NOHUGEPAGE);
}

// Called before memory is reserved that will be given back in parts. glibc takes a block larger than any that was freed
// (up to 32 MiB) from the system, page by page anew, and trims a heap that is free at its end by twice that: one block
// of the whole size that is freed untouched stops both. A·A of ca-CondMat in float32: no page fault after the third
// call, where one of two had 1250 to 1900.
inline void keep_heap(int64_t bytes) { try_reserve(std::min<int64_t>(bytes, (32 << 20) - (64 << 10))).reset(); }

// Whether a tensor can own memory that was reserved here.
inline bool can_adopt() { return &torch_from_blob != nullptr; }

// The first `count` elements of `memory`, as many as are kept, as a tensor that frees it.
inline Tensor adopt(Memory memory, int64_t count, int64_t bytes_each, int32_t dtype) {
  const size_t bytes = static_cast<size_t>(std::max<int64_t>(count * bytes_each, 1));
  void* const kept = std::realloc(memory.get(), bytes);  // in place: it shrinks
  if (kept) {
    (void)memory.release();
    memory.reset(static_cast<char*>(kept));
  }
  const int64_t stride = 1;
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_from_blob(
      memory.get(), 1, &count, &stride, 0, dtype, device_type(), -1, &made, aoti_torch_layout_strided(), nullptr, 0,
      [](void* data, void*) { std::free(data); }, nullptr));
  (void)memory.release();
  return Tensor(made);
}

inline int64_t free_bytes() {
  struct sysinfo info;
  if (sysinfo(&info) != 0) return int64_t{1} << 30;
  return static_cast<int64_t>(info.freeram + info.bufferram) * static_cast<int64_t>(info.mem_unit);
}

}  // namespace sparsecore::binding
