// SPDX-License-Identifier: Apache-2.0
// Rows of a weight over torch's threads, in pieces of equal work.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "core/linear.h"
#include "core/partition.h"
#include "torch/registry.h"
#include "torch/stable.h"

namespace sparsecore::binding {

// A thread is worth waking for about this many multiply-adds (8 us at the slowest kernel's rate).
constexpr int64_t kThreadWork = 32768;

inline int64_t thread_count(int64_t work) {
  const int64_t most = work / kThreadWork + 1;
  return most == 1 ? 1 : std::min<int64_t>(most, torch::stable::get_num_threads());
}

// fn(piece, thread) for every piece in [0, pieces), each thread taking the next one that is free.
template <class Fn>
void for_pieces(int64_t pieces, int64_t threads, const Fn& fn) {
  if (threads <= 1 || pieces <= 1) {
    for (int64_t p = 0; p < pieces; ++p) fn(p, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread)
      for (int64_t p; (p = next.fetch_add(1, std::memory_order_relaxed)) < pieces;) fn(p, thread);
  });
}

// fn(begin, end) over rows [0, n), which are about `work` multiply-adds together, in ranges of like length.
// Returns -1, or what a range gave that was not -1.
template <class Fn>
int64_t for_rows(int64_t n, int64_t work, const Fn& fn) {
  const int64_t threads = thread_count(work), pieces = std::min<int64_t>(n, threads == 1 ? 1 : threads * 4);
  std::atomic<int64_t> bad{-1};
  for_pieces(pieces, threads, [&](int64_t p, int64_t) {
    const int64_t per = n / pieces, more = n % pieces;  // the first `more` pieces have one row more
    const int64_t begin = p * per + std::min(p, more);
    const int64_t row = fn(begin, begin + per + (p < more));
    if (row >= 0) bad.store(row, std::memory_order_relaxed);
  });
  return bad.load();
}

// Plans, packs and runs `kernel` for args whose dense and weight parts are filled in. Returns -1 or a
// row that breaks an invariant of the format. `offset(row)`: nonzeros before row.
template <class Kernel, class Args, class Offset>
int64_t run_linear(const Kernel& kernel, Args& args, const Offset& offset) {
  const Linear& d = args.dense;
  if (d.m == 0) return -1;
  note_kernel(kernel.name);
  args.plan = kernel.plan(d, args.weight);
  const int64_t nnz = args.weight.nnz, threads = thread_count(d.m * (nnz + d.n));
  const int64_t packed_bytes = (args.plan.packed_floats * 4 + 63) / 64 * 64;
  const int64_t scratch_bytes = (args.plan.scratch_bytes + 63) / 64 * 64;
  const int64_t bytes = packed_bytes + threads * scratch_bytes;
  const std::unique_ptr<char, decltype(&std::free)> memory(
      bytes > 0 ? static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(bytes))) : nullptr, &std::free);
  SPARSECORE_REQUIRE(bytes == 0 || memory, "x: no memory for ", bytes, " bytes of working space");
  char* const base = memory.get();
  args.packed = reinterpret_cast<float*>(base);

  const int64_t packs = pack_pieces(args.plan, d.k);
  for_pieces(packs, std::min(threads, packs), [&](int64_t p, int64_t) { kernel.pack(args, p, p + 1); });

  const int64_t pieces = threads == 1 ? 1 : std::min<int64_t>(threads * 4, (d.n + 15) / 16);
  std::vector<int64_t> cuts(static_cast<size_t>(pieces) + 1, 0);
  for (int64_t p = 1; p <= pieces; ++p)
    cuts[p] = std::max(cuts[p - 1], p == pieces ? d.n : piece_begin(d.n, p, pieces, 16, 16, offset));
  std::atomic<int64_t> bad{-1};
  for_pieces(pieces, threads, [&](int64_t p, int64_t thread) {
    const int64_t row = kernel.run(args, cuts[p], cuts[p + 1], base + packed_bytes + thread * scratch_bytes);
    if (row >= 0) bad.store(row, std::memory_order_relaxed);
  });
  return bad.load();
}

}  // namespace sparsecore::binding
