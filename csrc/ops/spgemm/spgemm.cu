// SPDX-License-Identifier: Apache-2.0
// spgemm on CUDA: a warp or a block makes a row of C whole and merges products by atomics into a table in shared memory
// as they are made. `open` checks, `measure` counts rows' products and lists rows by them, `columns` merges a row's
// columns and counts them, `sums`, `partials` and `offsets` make crow of the counts, `levels` lists rows by nonzeros;
// then, once C is allocated, `columns` again, and `values`. Levels 0, 1: a warp, 128 and 512 slots; 2: a block, 4096;
// 3: a block, columns as bits, 524288 at a time, sums in a table in global memory. Threads of any row are busy, and no
// product is stored. Sums run in the order of A's row: threads that meet in a column take turns; else, by atomics.
// Products are walked three times: to count, for columns, for values. Not yet measured on a device: slots and widths are
// choices, not findings.
//
// sass begin_kernel: STG; no LDL STL
// sass open_kernel: LDG RED.MIN RED.ADD; no LDL STL
// sass measure_kernel: LDG SHFL ATOMG.ADD; no LDL STL
// sass columns_kernel: LDG ATOMS.CAS ATOMS.OR; no LDL STL
// sass sums_kernel: LDG SHFL STG; no LDL STL
// sass partials_kernel: LDG SHFL STG BAR.SYNC; no LDL STL
// sass offsets_kernel: LDG SHFL STG BAR.SYNC; no LDL STL
// sass levels_kernel: LDG ATOMG.ADD; no LDL STL
// sass values_kernel: LDG; no LDL STL
// sass values_kernel: some MATCH.ANY ATOMS.CAS ATOMG.CAS RED.ADD
#include "ops/spgemm/spgemm.h"

#include "ops/spgemm/spgemm_cuda_tables.h"

namespace sparsecore::spgemm {
namespace {

constexpr int kWarps = 4;  // of a block of rows that a warp makes
constexpr int kThreads = 256;
using Block = BlockTeam<kThreads>;
constexpr int kResident = 4;  // blocks on a processor: what shared memory allows, and registers enough
constexpr int kNoLevel = -1;
constexpr int kHeavy = 3;
constexpr int kBitWords = 16384;  // of level 3
constexpr int kScanned = 16 * kThreads;  // rows that a block turns to offsets

__host__ __device__ constexpr int slots_of(int level) { return level == 0 ? 128 : level == 1 ? 512 : 4096; }
__host__ __device__ constexpr int64_t most_of(int level) { return slots_of(level) / 4 * 3; }

SPARSECORE_DEVICE int level_of(int64_t numbers) {
  if (numbers <= 0) return kNoLevel;
  int level = 0;
  while (level < kHeavy && numbers > most_of(level)) ++level;
  return level;
}

// Lists of rows by level, [kDeviceLevels][m], behind partial sums in scratch.
SPARSECORE_DEVICE int64_t* partials_of(const DeviceArgs& d) { return static_cast<int64_t*>(d.scratch); }
__host__ __device__ constexpr int64_t partial_count(int64_t m) { return m / kScanned + 1; }
SPARSECORE_DEVICE int* list_of(const DeviceArgs& d, int level) {
  return reinterpret_cast<int*>(partials_of(d) + partial_count(d.a.n)) + level * d.a.n;
}

// Each lane's row joins the list of its level. By a whole warp.
SPARSECORE_DEVICE void append(const DeviceArgs& d, int set, int64_t row, int level) {
  for (int l = 0; l < kDeviceLevels; ++l) {
    const unsigned mine = warp_ballot(level == l);
    if (mine == 0) continue;
    DeviceCount at = 0;
    if (lane_index() == 0) at = atomic_add(&d.found->rows[set][l], static_cast<DeviceCount>(__popc(mine)));
    at = warp_shuffle(at, 0) + static_cast<DeviceCount>(__popc(mine & ((1u << lane_index()) - 1)));
    if (level == l) list_of(d, l)[at] = static_cast<int>(row);
  }
}

SPARSECORE_DEVICE bool offsets_broken(const DeviceFound& f) {
  return f.bad_offsets[0] != kNoRow || f.bad_offsets[1] != kNoRow || f.bad_offsets[2] != kNoRow;
}
SPARSECORE_DEVICE bool broken(const DeviceFound& f) {
  return offsets_broken(f) || f.bad_columns[0] != kNoRow || f.bad_columns[1] != kNoRow;
}
// Every fall is between two rows.
SPARSECORE_DEVICE bool strict(const DeviceFound& f) { return f.falls == f.starts; }

SPARSECORE_DEVICE int64_t thread_of_grid() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }
SPARSECORE_DEVICE int64_t threads_of_grid() { return static_cast<int64_t>(gridDim.x) * kThreads; }

__global__ void begin_kernel(DeviceFound* found) {
  const DeviceFound none{{kNoRow, kNoRow, kNoRow}, {kNoRow, kNoRow}, 0, 0, 0, 0, 0, {}};
  *found = none;
}

// Matrix `which` of A, B, C: a thread a row's offsets and a thread a column, however long rows are.
template <class Index>
__global__ void __launch_bounds__(kThreads) open_kernel(CsrView w, int which, DeviceFound* found) {
  const Index *const crow = offsets_of<Index>(w), *const col = columns_of<Index>(w);
  const int64_t first = crow[0], last = crow[w.n];
  const int64_t from = first > 0 ? first : 0, to = last < w.nnz ? last : w.nnz;
  const bool ranges = which < 2;
  int falls = 0, starts = 0;
  for (int64_t i = thread_of_grid(); i < (w.n > w.nnz ? w.n : w.nnz); i += threads_of_grid()) {
    if (i < w.n) {
      const Elements row = elements_of<Index>(w, i);
      if (!row.good) atomic_least(&found->bad_offsets[which], static_cast<DeviceCount>(i));
      starts += which == 1 && row.begin > from && row.begin < row.end && col[row.begin] <= col[row.begin - 1];
    }
    if (ranges && i >= from && i < to) {
      const int64_t c = col[i];
      if (static_cast<uint64_t>(c) >= static_cast<uint64_t>(w.k))  // of the row that ends past i
        atomic_least(&found->bad_columns[which], static_cast<DeviceCount>(first_from(crow, 0, w.n + 1, i + 1) - 1));
      falls += which == 1 && i > from && c <= col[i - 1];
    }
  }
  if (thread_of_grid() == 0 && (first != 0 || last != w.nnz)) atomic_or(&found->bad_ends, DeviceCount{1} << which);
  falls = warp_sum(falls);
  starts = warp_sum(starts);
  if (lane_index() == 0 && falls > 0) atomic_add(&found->falls, static_cast<DeviceCount>(falls));
  if (lane_index() == 0 && starts > 0) atomic_add(&found->starts, static_cast<DeviceCount>(starts));
}

// Products of each row of A, by warps, 32 rows a warp: those that have any are listed by them, others have none in C.
template <class Index>
__global__ void __launch_bounds__(kThreads) measure_kernel(DeviceArgs d) {
  if (broken(*d.found)) return;
  const Index *const crow = offsets_of<Index>(d.a), *const col = columns_of<Index>(d.a);
  const Index* const crow_b = offsets_of<Index>(d.b);
  for (int64_t first = WarpTeam::index() * kLanes; first < d.a.n; first += WarpTeam::count() * kLanes) {
    int64_t mine = 0;
    for (int j = 0; j < kLanes && first + j < d.a.n; ++j) {
      int64_t products = 0;
      for (int64_t p = crow[first + j] + lane_index(); p < crow[first + j + 1]; p += kLanes)
        products += crow_b[col[p] + 1] - crow_b[col[p]];
      products = warp_sum(products);
      if (lane_index() == j) mine = products;
    }
    const int64_t row = first + lane_index();
    if (row < d.a.n) static_cast<Index*>(const_cast<void*>(d.c.crow))[row + 1] = 0;
    append(d, 0, row, level_of(row >= d.a.n ? 0 : mine < d.b.k ? mine : d.b.k));
  }
}

template <class Team, class Index>
SPARSECORE_DEVICE Walk<Team, Index> walk_of(const DeviceArgs& d, char* memory) {
  int64_t* const before = reinterpret_cast<int64_t*>(memory);
  return {d.a, d.b, strict(*d.found), before, before + Team::size};
}

// Distinct columns of the rows of a level: counted into crow, or written to col.
template <class Team, class Index>
__global__ void __launch_bounds__(kThreads, kResident) columns_kernel(DeviceArgs d, int level, bool write) {
  if (broken(*d.found)) return;
  const int slots = level == kHeavy ? kBitWords : slots_of(level);
  char* const memory =
      dynamic_shared<char>() + Team::in_block() * (Walk<Team, Index>::shared_bytes + slots * int64_t{sizeof(unsigned)});
  const Walk<Team, Index> walk = walk_of<Team, Index>(d, memory);
  ColumnSet<Team> set{reinterpret_cast<unsigned*>(memory + Walk<Team, Index>::shared_bytes)};
  Index* const crow = static_cast<Index*>(const_cast<void*>(d.c.crow));
  const int64_t rows = static_cast<int64_t>(d.found->rows[write][level]);
  for (int64_t i = Team::index(); i < rows; i += Team::count()) {
    const int64_t row = list_of(d, level)[i];
    const Columns span = walk.span(row);
    const bool direct = level == kHeavy || span.hi - span.lo <= slots * int64_t{32};
    const int64_t width = direct ? slots * int64_t{32} : INT64_MAX - span.lo;
    int64_t met = 0, written = 0;
    for (int64_t lo = span.lo; lo < span.hi; lo += width) {
      const Columns window{lo, span.hi - lo < width ? span.hi : lo + width};
      set.open(window, slots, direct);
      walk.each(row, window, [&](bool here, int64_t, int64_t, unsigned column) { met += here && set.add(column); });
      if (!write) continue;
      const int64_t at = crow[row] + written, room = crow[row + 1] - at;
      written += set.write(static_cast<Index*>(const_cast<void*>(d.c.col)) + at, room, d.sorted || d.ordered);
    }
    int64_t total;
    if (!write) Team::exclusive_sum(met, total);
    if (!write && Team::rank() == 0) crow[row + 1] = static_cast<Index>(total);
  }
}

// crow holds counts of rows at row + 1: block b's sum of kScanned of them.
template <class Index>
__global__ void __launch_bounds__(kThreads) sums_kernel(DeviceArgs d) {
  const Index* const crow = offsets_of<Index>(d.c);
  for (int64_t part = blockIdx.x; part < partial_count(d.a.n); part += gridDim.x) {
    int64_t sum = 0, total;
    for (int64_t i = part * kScanned + threadIdx.x; i < (part + 1) * kScanned && i < d.a.n; i += kThreads)
      sum += crow[i + 1];
    block_exclusive_sum(sum, total);
    if (threadIdx.x == 0) partials_of(d)[part] = total;
  }
}

// One block: partial sums to what lies before each, and nnz.
__global__ void __launch_bounds__(kThreads) partials_kernel(DeviceArgs d) {
  const int64_t parts = partial_count(d.a.n);
  int64_t before = 0;
  for (int64_t first = 0; first < parts; first += kThreads) {
    const int64_t i = first + threadIdx.x;
    const int64_t mine = i < parts ? partials_of(d)[i] : 0;
    int64_t total;
    const int64_t sum = before + block_exclusive_sum(mine, total);
    if (i < parts) partials_of(d)[i] = sum;
    before += total;
  }
  if (threadIdx.x == 0) d.found->nnz = static_cast<DeviceCount>(before);
}

template <class Index>
__global__ void __launch_bounds__(kThreads) offsets_kernel(DeviceArgs d) {
  Index* const crow = static_cast<Index*>(const_cast<void*>(d.c.crow));
  if (thread_of_grid() == 0) crow[0] = 0;
  for (int64_t part = blockIdx.x; part < partial_count(d.a.n); part += gridDim.x) {
    int64_t before = partials_of(d)[part];
    for (int64_t first = part * kScanned; first < (part + 1) * kScanned && first < d.a.n; first += kThreads) {
      const int64_t i = first + threadIdx.x;
      const int64_t mine = i < d.a.n ? crow[i + 1] : 0;
      int64_t total;
      const int64_t sum = before + block_exclusive_sum(mine, total);
      if (i < d.a.n) crow[i + 1] = static_cast<Index>(sum + mine);
      before += total;
    }
  }
}

SPARSECORE_DEVICE void spoil(const DeviceArgs& d, int64_t i) {
  if (d.c.value == Dtype::f64) store_number(const_cast<void*>(d.c.values), d.c.value, i, __longlong_as_double(-1));
  else store_number(const_cast<void*>(d.c.values), d.c.value, i, __uint_as_float(0x7fffffffu));
}

// Lists rows of C by their nonzeros. Where its offsets, A's or B's fall, rows overlap: none is made, all is NaN, as is
// what lies in no row.
template <class Index>
__global__ void __launch_bounds__(kThreads) levels_kernel(DeviceArgs d) {
  const Index* const crow = offsets_of<Index>(d.c);
  const bool own = !d.given && !d.masked, whole = own ? broken(*d.found) : offsets_broken(*d.found);
  if (!own && (whole || d.found->bad_ends & 4))
    for (int64_t i = thread_of_grid(); i < d.c.nnz; i += threads_of_grid())
      if (whole || i < crow[0] || i >= crow[d.c.n]) spoil(d, i);
  if (whole) return;
  int64_t longest = 0;
  for (int64_t first = WarpTeam::index() * kLanes; first < d.a.n; first += WarpTeam::count() * kLanes) {
    const int64_t row = first + lane_index(), count = row < d.a.n ? crow[row + 1] - crow[row] : 0;
    append(d, 1, row, level_of(count));
    longest = count > longest ? count : longest;
  }
  longest = -warp_least(-longest);
  if (lane_index() == 0) atomic_most(&d.found->longest, static_cast<DeviceCount>(longest));
}

// Values of the rows of a level. Far: in tables in global memory, a block's own each.
template <class Team, class Index, class Sum, bool Ordered, bool Far>
__global__ void __launch_bounds__(kThreads, kResident) values_kernel(DeviceArgs d, int level) {
  using Walker = Walk<Team, Index>;
  const int64_t slots = Far ? d.table_slots : slots_of(level == kHeavy ? kHeavy - 1 : level);
  constexpr int64_t kSlotBytes = sizeof(Sum) + sizeof(unsigned);
  char* const memory =
      dynamic_shared<char>() + Team::in_block() * (Walker::shared_bytes + (Far ? 0 : slots * kSlotBytes));
  char* const tables =
      Far ? static_cast<char*>(d.tables) + blockIdx.x * slots * kSlotBytes : memory + Walker::shared_bytes;
  const Walker walk = walk_of<Team, Index>(d, memory);
  Sum* const sums = reinterpret_cast<Sum*>(tables);
  SumTable<Team, Sum> table{reinterpret_cast<unsigned*>(sums + slots), sums, slots};
  const Index *const crow = offsets_of<Index>(d.c), *const col = columns_of<Index>(d.c);
  const bool rising = d.given || (!d.masked && (d.sorted || d.ordered || level == kHeavy));
  const int64_t rows = static_cast<int64_t>(d.found->rows[1][level]);
  for (int64_t i = Team::index(); i < rows; i += Team::count()) {
    const int64_t row = list_of(d, level)[i], begin = crow[row], end = crow[row + 1];
    bool good = true;
    for (int64_t first = begin, last; first < end; first = last) {
      last = end - first > slots / 4 * 3 ? first + slots / 4 * 3 : end;
      good &= table.open(col, first, last, d.c.k, rising);
      Columns window;  // parts of a row have a border each, so that no product is lost between
      if (!d.masked && first > begin) window.lo = col[first];
      if (!d.masked && last < end) window.hi = col[last];
      good &= walk.each(row, window, [&](bool here, int64_t p, int64_t q, unsigned column) {
        const int slot = here ? table.find(column) : -1;
        good &= d.masked | !here | (slot >= 0);
        Sum x{}, y{};
        if (slot >= 0) {
          x = load_number<Sum>(d.a.values, d.a.value, p);
          y = load_number<Sum>(d.b.values, d.b.value, q);
        }
        if constexpr (Ordered) Team::in_turn(slot, [&] { sums[slot] = multiply_add(x, y, sums[slot]); });
        else if (slot >= 0) atomic_add(sums + slot, x * y);
      });
      Team::sync();
      for (int64_t j = first + Team::rank(); j < last; j += Team::size) {
        const int64_t c = col[j];
        const int slot =
            static_cast<uint64_t>(c) < static_cast<uint64_t>(d.c.k) ? table.find(static_cast<unsigned>(c)) : -1;
        if (slot >= 0) store_number(const_cast<void*>(d.c.values), d.c.value, j, sums[slot]);
      }
    }
    if (!Team::any(!good)) continue;
    for (int64_t j = begin + Team::rank(); j < end; j += Team::size) spoil(d, j);
  }
}

// Blocks for `items` when a block takes `each` of them in a round.
unsigned blocks_for(const DeviceArgs& d, int64_t items, int64_t each) {
  const int64_t blocks = (items + each - 1) / each;
  return static_cast<unsigned>(blocks < d.blocks ? blocks : d.blocks);
}

// Queues kernels until one does not start.
struct Queue {
  const DeviceArgs& d;
  void* stream;
  const char* error = nullptr;

  template <class... Parameters, class... Arguments>
  void add(void (*kernel)(Parameters...), unsigned blocks, int threads, int64_t shared, Arguments... arguments) {
    if (!error)
      error = cuda::launch(kernel, {dim3(blocks), dim3(static_cast<unsigned>(threads)), shared, stream}, arguments...);
  }

  template <class Index>
  void open(const CsrView& w, int which) {
    add(open_kernel<Index>, blocks_for(d, (w.n > w.nnz ? w.n : w.nnz) + 1, kThreads), kThreads, 0, w, which, d.found);
  }

  template <class Index>
  void columns(bool write) {
    for (int level = 0; level < kDeviceLevels; ++level) {
      const int64_t bytes = (level == kHeavy ? kBitWords : slots_of(level)) * int64_t{sizeof(unsigned)};
      if (level < 2)
        add(columns_kernel<WarpTeam, Index>, blocks_for(d, d.a.n, kWarps), kWarps * kLanes,
            kWarps * (bytes + Walk<WarpTeam, Index>::shared_bytes), d, level, write);
      else
        add(columns_kernel<Block, Index>, blocks_for(d, d.a.n, 1), kThreads, bytes + Walk<Block, Index>::shared_bytes,
            d, level, write);
    }
  }

  template <class Index>
  void levels() {
    add(levels_kernel<Index>, blocks_for(d, d.a.n > d.c.nnz ? d.a.n : d.c.nnz, kThreads), kThreads, 0, d);
  }

  template <class Index, class Sum, bool Ordered>
  void values() {
    for (int level = 0; level < kDeviceLevels; ++level) {
      const int64_t bytes = slots_of(level) * int64_t{sizeof(Sum) + sizeof(unsigned)};
      constexpr int64_t kWalk = Walk<Block, Index>::shared_bytes;
      if (level < 2)
        add(values_kernel<WarpTeam, Index, Sum, Ordered, false>, blocks_for(d, d.a.n, kWarps), kWarps * kLanes,
            kWarps * (bytes + Walk<WarpTeam, Index>::shared_bytes), d, level);
      else if (level == kHeavy && d.table_count > 0)
        add(values_kernel<Block, Index, Sum, Ordered, true>,
            blocks_for(d, d.a.n < d.table_count ? d.a.n : d.table_count, 1), kThreads, kWalk, d, level);
      else
        add(values_kernel<Block, Index, Sum, Ordered, false>, blocks_for(d, d.a.n, 1), kThreads, bytes + kWalk, d,
            level);
    }
  }

  template <class Index>
  void phase(DevicePhase phase) {
    const bool own = !d.given && !d.masked;
    if (phase == DevicePhase::columns) return columns<Index>(true);
    if (phase == DevicePhase::count || !own) {
      add(begin_kernel, 1, 1, 0, d.found);
      open<Index>(d.a, 0);
      open<Index>(d.b, 1);
    }
    if (phase == DevicePhase::count) {
      const unsigned parts = blocks_for(d, partial_count(d.a.n), 1);
      add(measure_kernel<Index>, blocks_for(d, d.a.n, kThreads), kThreads, 0, d);
      columns<Index>(false);
      add(sums_kernel<Index>, parts, kThreads, 0, d);
      add(partials_kernel, 1, kThreads, 0, d);
      add(offsets_kernel<Index>, parts, kThreads, 0, d);
      return levels<Index>();
    }
    if (!own) {
      open<Index>(d.c, 2);
      levels<Index>();
    }
    if (d.a.value == Dtype::f64) return d.ordered ? values<Index, double, true>() : values<Index, double, false>();
    return d.ordered ? values<Index, float, true>() : values<Index, float, false>();
  }
};

}  // namespace

int64_t device_scratch_bytes(int64_t m) {
  return partial_count(m) * int64_t{sizeof(int64_t)} + kDeviceLevels * m * int64_t{sizeof(int)};
}
int64_t device_table_bytes(Dtype value, int64_t slots) { return slots * (value == Dtype::f64 ? 12 : 8); }
int64_t device_table_slots(int64_t nonzeros) {
  if (nonzeros <= most_of(kHeavy - 1)) return 0;
  int64_t slots = 1;
  while (slots / 4 * 3 < nonzeros && slots < int64_t{1} << 31) slots *= 2;  // more: in parts
  return slots;
}
int64_t device_free_bytes() {
  size_t free = 0, total = 0;
  return cudaMemGetInfo(&free, &total) == cudaSuccess ? static_cast<int64_t>(free) : 0;
}

const char* launch(DevicePhase phase, const DeviceArgs& d, void* stream) {
  Queue queue{d, stream};
  if (d.a.index == Dtype::i32) queue.phase<int32_t>(phase);
  else queue.phase<int64_t>(phase);
  return queue.error;
}

}  // namespace sparsecore::spgemm
