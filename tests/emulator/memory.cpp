// SPDX-License-Identifier: Apache-2.0
// Who may touch what. Global memory: the buffers of the call. Shared memory: each byte remembers its last writer and
// readers, so that a read before any write, and two accesses that no barrier orders, are found whatever the order of
// threads. Locals: one's own. Shared variables are thread_local ones of this program, see cuda_runtime.h.
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstring>

#include "grid.h"

namespace sparsecore::cuda {
alignas(1024) thread_local unsigned char sparsecore_dynamic_shared[emulator::kSharedMax];
}

namespace emulator {
namespace {

using sparsecore::cuda::sparsecore_dynamic_shared;

constexpr uint16_t kNobody = 0, kSeveral = 0xffff;

struct Byte {  // of shared memory; threads are their number in the block + 1
  uint16_t writer = kNobody, reader = kNobody;
  uint32_t written = 0, read = 0;  // the thread's clock then; of several readers, the latest block time
  bool atomic = false, copying = false;
};

struct Region {
  const char *begin = nullptr, *end = nullptr;
  bool holds(const char* p) const { return p >= begin && p < end; }
};

std::vector<Buffer> buffers;
Region image, locals;  // this program's own constants and code; its thread_local variables
std::vector<Byte> bytes;

// This program's parts of memory, found by an address in each.
void find_regions() {
  locals = {};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void*) {
        const char* base = reinterpret_cast<const char*>(info->dlpi_addr);
        Region whole;
        for (int i = 0; i < info->dlpi_phnum; ++i)
          if (info->dlpi_phdr[i].p_type == PT_LOAD) {
            const char* begin = base + info->dlpi_phdr[i].p_vaddr;
            if (!whole.begin) whole.begin = begin;
            whole.end = begin + info->dlpi_phdr[i].p_memsz;
          }
        if (!whole.holds(reinterpret_cast<const char*>(&find_regions))) return 0;
        image = whole;
        for (int i = 0; i < info->dlpi_phnum; ++i)
          if (info->dlpi_phdr[i].p_type == PT_TLS) {
            locals.begin = static_cast<const char*>(info->dlpi_tls_data);
            locals.end = locals.begin + info->dlpi_phdr[i].p_memsz;
          }
        return 1;
      },
      nullptr);
}

std::string hex(const void* p) {
  char text[32];
  std::snprintf(text, sizeof(text), "%p", p);
  return text;
}

// Whether what thread `who` (number + 1) did at its clock `then` happened before what `t` does now.
bool ordered(const Thread& t, uint16_t who, uint32_t then) {
  const unsigned id = who - 1u;
  if (id == t.id || then <= block().clock_at_barrier[id]) return true;
  return id / 32 == t.id / 32 && then <= t.known[id % 32];
}

[[noreturn]] void race(const char* p, const char* now, const char* before, uint16_t who) {
  std::string text = std::string(now) + " shared memory at " + hex(p);
  if (p >= reinterpret_cast<const char*>(sparsecore_dynamic_shared) &&
      p < reinterpret_cast<const char*>(sparsecore_dynamic_shared) + kSharedMax)
    text += " (dynamic + " + std::to_string(p - reinterpret_cast<const char*>(sparsecore_dynamic_shared)) + ")";
  text += std::string(", which ") + before + " with no barrier between";
  if (who != kSeveral) text += ": thread number " + std::to_string(who - 1);
  fault(text);
}

// AddressSanitizer's build is not instrumented otherwise, so what plain accesses do to shared memory is not known.
#if defined(EMULATOR_UNDER_ASAN)
constexpr bool kInstrumented = false;
#else
constexpr bool kInstrumented = true;
#endif

void touch_shared(const char* p, int64_t count, bool write, bool atomic) {
  const Thread& t = *block().running;
  const uint16_t me = static_cast<uint16_t>(t.id + 1);
  Byte* b = &bytes[static_cast<size_t>(p - locals.begin)];
  for (int64_t i = 0; i < count; ++i, ++b, ++p) {
    if (b->copying) fault("touches shared memory at " + hex(p) + " that an asynchronous copy has not reached yet");
    if (b->writer == kNobody && (!write || atomic))
      fault("reads shared memory at " + hex(p) + " that was not written: uninitialised");
    if (b->writer != kNobody && !(atomic && b->atomic) && !ordered(t, b->writer, b->written))
      race(p, write ? "writes" : "reads", b->atomic ? "an atomic changed" : "another wrote", b->writer);
    if (!write) {
      if (b->reader == kNobody || (b->reader != kSeveral && ordered(t, b->reader, b->read))) {
        b->reader = me;
        b->read = t.clock;
      } else {
        b->reader = kSeveral;
        b->read = static_cast<uint32_t>(block().time);
      }
      continue;
    }
    // Of several readers only the latest time is kept: one's own __syncwarp since then is taken to have met them.
    const bool after = b->reader == kSeveral ? b->read < block().last_barrier || b->read < t.last_warp_barrier
                                             : b->reader == kNobody || ordered(t, b->reader, b->read);
    if (!after) race(p, "writes", "another reads", b->reader);
    b->writer = me;
    b->written = t.clock;
    b->reader = kNobody;
    b->atomic = atomic;
  }
}

void touch(const void* address, int64_t count, bool write, bool aligned, bool atomic) {
  Thread* const t = block().running;
  if (!t) return;  // host code of a kernel file
  const char* const p = static_cast<const char*>(address);
  if (p >= t->fiber.stack() && p < t->fiber.stack() + Fiber::kStack) return;
  const char* const verb = write ? "writes" : "reads";
  if (aligned && reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(count) != 0)
    fault(std::string(verb) + " " + std::to_string(count) + " bytes at " + hex(p) + ", which is misaligned for them");
  for (const Buffer& b : buffers) {
    const char* const begin = static_cast<const char*>(b.data);
    if (p < begin || p + count > begin + b.bytes) continue;
    if (write && !b.writable) fault("writes to " + b.name + ", an input");
    return;
  }
  if (locals.holds(p)) {
    const char* const dynamic = reinterpret_cast<const char*>(sparsecore_dynamic_shared);
    if (p >= dynamic && p < dynamic + kSharedMax && p + count > dynamic + block().shared_bytes)
      fault(std::string(verb) + " dynamic shared memory at byte " + std::to_string(p - dynamic) + " of " +
            std::to_string(block().shared_bytes) + ": out of bounds");
    if (kInstrumented) touch_shared(p, count, write, atomic);
    return;
  }
  if (image.holds(p) && !write) return;
  std::string what = std::string(verb) + " " + std::to_string(count) + " bytes at " + hex(p) + ": out of bounds";
  for (unsigned i = 0; i < block().count; ++i) {
    const char* const stack = block().threads[i]->fiber.stack();
    if (p >= stack && p < stack + Fiber::kStack) fault(what + ", a local of thread number " + std::to_string(i));
  }
  int64_t nearest = 1 << 20;
  std::string name;
  for (const Buffer& b : buffers) {
    const char* const begin = static_cast<const char*>(b.data);
    const int64_t off = p < begin ? p - begin : p + count - begin - b.bytes;
    if (std::abs(off) < std::abs(nearest)) {
      nearest = off;
      name = ", " + std::to_string(std::abs(off)) + " bytes " +
             (off < 0 ? "before the begin of " : "past the end of ") + b.name;
    }
  }
  fault(what + name);
}

}  // namespace

Memory::Memory(std::vector<Buffer> all, uint64_t seed) {
  buffers = std::move(all);
  block().random.seed(seed);
}
Memory::~Memory() { buffers.clear(); }

void shared_begins(const Block& b) {
#if defined(EMULATOR_UNDER_ASAN)
  __asan_unpoison_memory_region(sparsecore_dynamic_shared, 1);
#endif
  sparsecore_dynamic_shared[0] = 0xff;  // the thread's variables exist from the first touch on
  find_regions();
  const char* const dynamic = reinterpret_cast<const char*>(sparsecore_dynamic_shared);
  const size_t before = static_cast<size_t>(dynamic - locals.begin);
  bytes.resize(static_cast<size_t>(locals.end - locals.begin));
  std::fill(bytes.begin(), bytes.begin() + static_cast<long>(before) + b.shared_bytes, Byte());
  std::fill(bytes.begin() + static_cast<long>(before) + kSharedMax, bytes.end(), Byte());
#if defined(EMULATOR_UNDER_ASAN)
  __asan_unpoison_memory_region(sparsecore_dynamic_shared, kSharedMax);
  __asan_poison_memory_region(sparsecore_dynamic_shared + b.shared_bytes,
                              static_cast<size_t>(kSharedMax - b.shared_bytes));
#endif
  std::memset(sparsecore_dynamic_shared, 0xff, static_cast<size_t>(b.shared_bytes));  // NaN to who reads it unseen
}

void check_access(const void* p, int64_t count, bool write, bool aligned) { touch(p, count, write, aligned, false); }
void atomic_access(const void* p, int64_t count) { touch(p, count, true, true, true); }

// Lands when it is waited for; until then nobody may touch where it goes.
void copy_async(void* shared, const void* global, int count, int valid) {
  Thread& t = *block().running;
  char* const to = static_cast<char*>(shared);
  if (!locals.holds(to)) fault("cp.async to " + hex(to) + ", which is not shared memory");
  if (valid < 0 || valid > count) fault("cp.async of " + std::to_string(valid) + " bytes of " + std::to_string(count));
  if (reinterpret_cast<uintptr_t>(global) % static_cast<uintptr_t>(count) != 0)
    fault("cp.async from a misaligned address");
  if (valid > 0) check_access(global, valid, false, false);
  check_access(to, count, true, true);
  Byte* const b = &bytes[static_cast<size_t>(to - locals.begin)];
  for (int i = 0; i < count; ++i) b[i].copying = true;
  t.copies.push_back({t.group, to, global, count, valid});
}

void copy_commit() { ++block().running->group; }

void copy_wait(int pending) {
  Thread& t = *block().running;
  size_t kept = 0;
  for (const Copy& c : t.copies) {
    if (c.group >= t.group - pending) {
      t.copies[kept++] = c;
      continue;
    }
    std::memcpy(c.to, c.from, static_cast<size_t>(c.valid));
    std::memset(c.to + c.valid, 0, static_cast<size_t>(c.count - c.valid));
    Byte* const b = &bytes[static_cast<size_t>(c.to - locals.begin)];
    for (int i = 0; i < c.count; ++i) {
      b[i].copying = false;
      b[i].written = t.clock;
    }
  }
  t.copies.resize(kept);
}

}  // namespace emulator

// What -fsanitize=thread calls at accesses.
extern "C" {
#define EMULATOR_ACCESS(bytes)                                                                   \
  void __tsan_read##bytes(void* p) { emulator::touch(p, bytes, false, true, false); }            \
  void __tsan_write##bytes(void* p) { emulator::touch(p, bytes, true, true, false); }            \
  void __tsan_unaligned_read##bytes(void* p) { emulator::touch(p, bytes, false, false, false); } \
  void __tsan_unaligned_write##bytes(void* p) { emulator::touch(p, bytes, true, false, false); }
EMULATOR_ACCESS(1)
EMULATOR_ACCESS(2)
EMULATOR_ACCESS(4)
EMULATOR_ACCESS(8)
EMULATOR_ACCESS(16)
void __tsan_read_range(void* p, unsigned long bytes) {
  emulator::touch(p, static_cast<int64_t>(bytes), false, false, false);
}
void __tsan_write_range(void* p, unsigned long bytes) {
  emulator::touch(p, static_cast<int64_t>(bytes), true, false, false);
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
