// SPDX-License-Identifier: Apache-2.0
// Grid, scheduler, barriers and warp collectives.
#include "emulator.h"

#include <algorithm>
#include <cstring>

#include "grid.h"

namespace emulator {
namespace {

Fiber scheduler;

std::string at(Where where) {
  const char* slash = std::strrchr(where.file, '/');
  return std::string(slash ? slash + 1 : where.file) + ":" + std::to_string(where.line);
}

std::string text(Index i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

Index position(unsigned id, Index size) { return {id % size.x, id / size.x % size.y, id / size.x / size.y}; }

Thread& self() { return *block().running; }

void wait(State state) {
  Thread& t = self();
  t.state = state;
  Fiber::change(t.fiber, scheduler);
}

void wake(Thread& t) {
  t.state = State::ready;
  block().ready.push_back(t.id);
}

void thread_main() {
  block().thread(block().arguments);
  Thread& t = self();
  t.state = State::done;
  ++block().finished;
  Fiber::change(t.fiber, scheduler);
}

// Nobody can run, and not all are done: says who waits for whom.
std::string deadlock(const Block& b) {
  const Thread* waits = nullptr;
  for (unsigned i = 0; i < b.count && !waits; ++i)
    if (b.threads[i]->state == State::at_collective || b.threads[i]->state == State::at_barrier)
      waits = b.threads[i].get();
  std::string what = name_of(*waits) + " waits at " + waits->name + " (" + at(waits->where) + ") for ";
  for (unsigned i = 0; i < b.count; ++i) {
    const Thread& t = *b.threads[i];
    const bool wanted =
        waits->state == State::at_barrier || (t.id / 32 == waits->id / 32 && (waits->mask >> t.id % 32 & 1));
    if (!wanted || (t.state == waits->state && std::strcmp(t.name, waits->name) == 0 && t.mask == waits->mask))
      continue;
    what += "thread " + text(position(t.id, b.size)) + ", which ";
    return what + (t.state == State::done ? "has ended" : std::string("waits at ") + t.name + " (" + at(t.where) + ")");
  }
  return what + "lanes that the block does not have";
}

void run_block(Block& b) {
  b.waiting = b.finished = 0;
  b.arrived.assign((b.count + 31) / 32, 0);
  b.time = 1;
  b.last_barrier = 0;
  b.clock_at_barrier.assign(b.count, 0);
  b.ready.clear();
  for (unsigned i = 0; i < b.count; ++i) {
    Thread& t = *b.threads[i];
    t.id = i;
    t.clock = 1;
    std::fill(std::begin(t.known), std::end(t.known), 0);
    t.last_warp_barrier = 0;
    t.copies.clear();
    t.group = 0;
    t.fiber.reset();
    wake(t);
  }
  shared_begins(b);
  while (!b.ready.empty() && b.failure.empty()) {
    std::swap(b.ready[b.random() % b.ready.size()], b.ready.back());
    b.running = b.threads[b.ready.back()].get();
    b.ready.pop_back();
    Fiber::change(scheduler, b.running->fiber);
  }
  b.running = nullptr;
  if (b.failure.empty() && b.finished < b.count) b.failure = deadlock(b);
}

}  // namespace

Block& block() {
  static Block b;
  return b;
}

std::string name_of(const Thread& thread) {
  return "block " + text(block().index) + " thread " + text(position(thread.id, block().size));
}

void fault(const std::string& what) {
  Block& b = block();
  if (!b.running) throw Fault(what);
  b.failure = name_of(*b.running) + ": " + what;
  for (;;) Fiber::change(b.running->fiber, scheduler);  // and never back: the launch is over
}

void absent_lane(int lane) { fault("a shuffle reads lane " + std::to_string(lane) + ", which the mask leaves out"); }

void run_grid(Index blocks, Index threads, int64_t shared_bytes, void (*thread)(const void*), const void* arguments) {
  Block& b = block();
  if (b.running) fault("a kernel launched a kernel");
  const uint64_t count = uint64_t{threads.x} * threads.y * threads.z;
  if (count == 0 || count > kThreadsMax || threads.z > 64)
    throw Fault("a block of " + text(threads) + " threads: at most 1024, of them 64 along z");
  if (blocks.x > 0x7fffffff || blocks.y > 65535 || blocks.z > 65535)
    throw Fault("a grid of " + text(blocks) + " blocks");
  if (shared_bytes < 0 || shared_bytes > kSharedMax)
    throw Fault(std::to_string(shared_bytes) + " bytes of shared memory: at most " + std::to_string(kSharedMax));
  b.blocks = blocks;
  b.size = threads;
  b.count = static_cast<unsigned>(count);
  b.shared_bytes = shared_bytes;
  b.thread = thread;
  b.arguments = arguments;
  while (b.threads.size() < count) b.threads.push_back(std::make_unique<Thread>(&thread_main));
  const uint64_t total = uint64_t{blocks.x} * blocks.y * blocks.z;
  std::vector<uint64_t> order(total);
  for (uint64_t i = 0; i < total; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), b.random);
  for (uint64_t i : order) {
    b.index = {static_cast<unsigned>(i % blocks.x), static_cast<unsigned>(i / blocks.x % blocks.y),
               static_cast<unsigned>(i / blocks.x / blocks.y)};
    b.failure.clear();
    run_block(b);
    if (!b.failure.empty()) throw Fault(b.failure);
  }
}

Index thread_index() { return position(self().id, block().size); }
Index block_index() { return block().index; }
Index block_size() { return block().size; }
Index grid_size() { return block().blocks; }
int lane_index() { return static_cast<int>(self().id % 32); }

int block_barrier(BarrierResult result, bool condition, Where where) {
  Block& b = block();
  Thread& t = self();
  t.name = "__syncthreads";
  t.where = where;
  t.condition = condition;
  t.mask = 0;
  if (b.waiting == 0) b.first = &t;
  else if (b.first->where.line != where.line || std::strcmp(b.first->where.file, where.file) != 0)
    fault("is at __syncthreads " + at(where) + " while thread " + text(position(b.first->id, b.size)) +
          " waits at another, " + at(b.first->where));
  if (++b.waiting < b.count) {
    wait(State::at_barrier);
    return t.result;
  }
  b.waiting = 0;
  int holds = 0;
  for (unsigned i = 0; i < b.count; ++i) holds += b.threads[i]->condition;
  b.last_barrier = ++b.time;
  for (unsigned i = 0; i < b.count; ++i) {
    Thread& other = *b.threads[i];
    other.result = result == BarrierResult::count ? holds
                   : result == BarrierResult::all ? holds == static_cast<int>(b.count)
                                                  : holds > 0;
    b.clock_at_barrier[i] = other.clock++;
    if (&other != &t) wake(other);
  }
  return t.result;
}

void collective(const char* name, unsigned mask, void* payload, Combine combine, Where where) {
  Block& b = block();
  Thread& t = self();
  const unsigned lane = t.id % 32, first = t.id - lane;
  if (!(mask >> lane & 1)) fault(std::string(name) + " (" + at(where) + "): the mask leaves out the lane that calls");
  t.name = name;
  t.where = where;
  t.mask = mask;
  t.payload = payload;
  unsigned& arrived = b.arrived[t.id / 32];
  arrived |= 1u << lane;
  if ((arrived & mask) != mask) {
    if (first + 32 > b.count && mask >> (b.count - first) != 0)
      fault(std::string(name) + ": the mask names lanes that the block does not have");
    return wait(State::at_collective);
  }
  Lanes lanes{mask, {}};
  for (unsigned l = 0; l < 32; ++l) {
    if (!(mask >> l & 1)) continue;
    const Thread& other = *b.threads[first + l];
    if (other.name != name && std::strcmp(other.name, name) != 0) return wait(State::at_collective);
    if (other.mask != mask)
      fault(std::string(name) + " (" + at(where) + "): lane " + std::to_string(l) + " brings another mask");
    lanes.payload[l] = other.payload;
  }
  combine(lanes);
  arrived &= ~mask;
  for (unsigned l = 0; l < 32; ++l)
    if ((mask >> l & 1) && l != lane) wake(*b.threads[first + l]);
}

void warp_barrier(unsigned mask, Where where) {
  collective(
      "__syncwarp", mask, &self(),
      [](const Lanes& lanes) {
        uint32_t known[32] = {};
        ++block().time;
        for (int m = 0; m < 32; ++m)
          if (Thread* t = lanes.of<Thread>(m)) {
            t->known[m] = t->clock++;
            t->last_warp_barrier = block().time;
            for (int l = 0; l < 32; ++l) known[l] = std::max(known[l], t->known[l]);
          }
        for (int m = 0; m < 32; ++m)
          if (Thread* t = lanes.of<Thread>(m)) std::copy(std::begin(known), std::end(known), t->known);
      },
      where);
}

}  // namespace emulator
