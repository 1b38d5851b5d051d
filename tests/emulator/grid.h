// SPDX-License-Identifier: Apache-2.0
// The block that runs, as emulator.cpp and memory.cpp share it.
#pragma once
#include <memory>
#include <random>

#include "emulator.h"
#include "fiber.h"

namespace emulator {

enum class State { ready, at_barrier, at_collective, done };

struct Copy {
  int group;
  char* to;
  const void* from;
  int count, valid;
};

struct Thread {
  explicit Thread(void (*entry)()) : fiber(entry) {}
  Fiber fiber;
  unsigned id = 0;  // in the block, x first
  State state = State::ready;
  Where where = {"", 0};
  // Where it waits: the collective's name and mask and its payload, or the condition it brought to a barrier.
  const char* name = "";
  unsigned mask = 0;
  void* payload = nullptr;
  bool condition = false;
  int result = 0;
  // Events that it has taken part in. known[l]: the clock of lane l of its warp that a __syncwarp told it of.
  uint32_t clock = 1;
  uint32_t known[32] = {};
  uint64_t last_warp_barrier = 0;  // in time of the block
  std::vector<Copy> copies;  // asynchronous ones that have not landed
  int group = 0;
};

struct Block {
  Index index, blocks, size;
  int64_t shared_bytes;
  std::vector<std::unique_ptr<Thread>> threads;  // as many as any block had; the first `count` are this block's
  unsigned count = 0, waiting = 0, finished = 0;  // waiting: at a barrier, `first` of them first
  const Thread* first = nullptr;
  std::vector<unsigned> ready;
  std::vector<unsigned> arrived;  // of each warp, the lanes at a collective
  void (*thread)(const void*);
  const void* arguments;
  Thread* running = nullptr;
  std::string failure;
  uint64_t time = 1, last_barrier = 0;       // block barriers and __syncwarp
  std::vector<uint32_t> clock_at_barrier;  // of each thread, when all last met
  std::mt19937_64 random;
};

Block& block();
std::string name_of(const Thread& thread);  // "block (0,0,0) thread (5,0,0)"

void shared_begins(const Block& block);  // all of it is uninitialised

}  // namespace emulator
