// SPDX-License-Identifier: Apache-2.0
// CUDA kernels run on a CPU: one block at a time, every thread a fiber, all on the calling thread.
//
//   include/cuda_runtime.h, include/cuda/ptx.h   what a kernel file includes in place of CUDA's and csrc's own
//   fiber.h                                      stacks and switching between them
//   emulator.cpp                                 grid, scheduler, barriers, warp collectives
//   memory.cpp                                   who may touch what: every access of a kernel comes by here
//   mma.cpp                                      tensor-core products
//
// A fiber runs until it waits; which one runs next, and which block, is drawn from a seed. A kernel file is compiled
// with -fsanitize=thread, not for that runtime but for its calls at every access: memory.cpp answers them. Errors, each
// with the block and thread: a barrier or collective that not all reach, a mask that lanes disagree on, an access
// outside the arrays of the call, misaligned, or to another thread's locals, a read of shared memory that was not
// written, and two accesses to shared memory of which one writes and that no barrier orders (warp collectives but
// __syncwarp order none).
//
// Not here, so no kernel that uses it can be tested so: wgmma, TMA (cp.async.bulk), mbarrier, tcgen05, clusters and
// distributed shared memory, named barriers, blocks that wait for each other (cooperative grids, spinning), textures,
// device-side malloc, printf and launches, the order of relaxed global memory between blocks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace emulator {

struct Index {
  unsigned x, y, z;
};

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Buffer {
  std::string name;
  const void* data;
  int64_t bytes;
  bool writable;
};

// What kernels may touch in global memory and the seed of their schedule, while this lives. Not nested.
class Memory {
 public:
  Memory(std::vector<Buffer> buffers, uint64_t seed);
  ~Memory();
  Memory(const Memory&) = delete;
};

// Runs thread(arguments) once per thread of the grid; throws Fault. What a launch in cuda_runtime.h comes down to.
void run_grid(Index blocks, Index threads, int64_t shared_bytes, void (*thread)(const void*), const void* arguments);

constexpr int64_t kSharedMax = 227 * 1024;  // dynamic, of an H100
constexpr unsigned kThreadsMax = 1024;

// ---- For threads of a running grid.

Index thread_index();
Index block_index();
Index block_size();
Index grid_size();
int lane_index();

struct Where {
  const char* file;
  int line;
};

enum class BarrierResult { count, all, any };
int block_barrier(BarrierResult result, bool condition, Where where);

// Lanes of a warp that met: payload[l] is lane l's, null if it is not in the mask.
struct Lanes {
  unsigned mask;
  void* payload[32];
  template <class T>
  T* of(int lane) const {
    return static_cast<T*>(payload[lane]);
  }
};
using Combine = void (*)(const Lanes&);

// Waits until every lane in `mask` is here with the same name and mask; the last one calls combine on all of them.
void collective(const char* name, unsigned mask, void* payload, Combine combine, Where where);
void warp_barrier(unsigned mask, Where where);

// The bytes are about to be read or written by the running thread as a whole that other atomics do not split.
void atomic_access(const void* p, int64_t bytes);
void check_access(const void* p, int64_t bytes, bool write, bool aligned);

void copy_async(void* shared, const void* global, int bytes, int valid);
void copy_commit();
void copy_wait(int pending);

[[noreturn]] void absent_lane(int lane);
[[noreturn]] void fault(const std::string& what);

}  // namespace emulator
