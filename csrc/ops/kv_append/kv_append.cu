// SPDX-License-Identifier: Apache-2.0
// kv_append on CUDA, three launches whose grids follow from shapes alone; blocks of what this call does not touch return.
//   compress  a block per head's K or V and column that may begin: the column that leaves, a warp a token. Tokens that
//             came before the call lie in its dense page, those of this call in x: dense pages are read alone.
//   write     a block per head's K or V and column that may get tokens: to its dense page, but for slots that a later
//             column of the call has too, so no two blocks write one slot of a sequence.
//   advance   a block per sequence: its table and length, which the others have read.
// Each block looks for its sequence's faults itself: of one token's call that is one column.
//
// A step of decoding that begins no page is three empty launches but for a row a head. Of the others, once in `page`
// steps, 8 warps compress a page of 64 tokens a head and half, some 8 rows of 0.6 us each. A prompt is compressed at
// kv_compress's rate. Not yet measured on a device.
//
// sass kv_append_compress_kernel: LDG STG REDUX VOTE POPC; no LDL STL
// sass kv_append_write_kernel: LDG.128 STG.128; no LDL STL
// sass kv_append_advance_kernel: LDG STG; no LDL STL
#include "cuda/block.h"
#include "cuda/copy.h"
#include "cuda/kv_compress.h"
#include "ops/kv_append/kv_append.h"

namespace sparsecore::kv_append {
namespace {

using namespace cuda;

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kLanes;

// Whether none of the columns has a fault; asked by all threads.
SPARSECORE_DEVICE bool block_sound(const Args& a, int64_t sequence, const Columns& found) {
  bool bad = false;
  for (int64_t column = found.begin + threadIdx.x; column < found.end; column += kThreads)
    bad |= column_fault(a, sequence, found, column).fault != Fault::none;
  return !block_any(bad);
}

// A block's task, its place among the columns of its task, and those columns: none where the length has no pages.
struct Item {
  int64_t sequence, head, number;
  const Half& half;
  Columns found;

  SPARSECORE_DEVICE Item(const Args& a, int64_t per_task)
      : sequence(blockIdx.x / per_task / 2 / a.kv_heads),
        head(blockIdx.x / per_task / 2 % a.kv_heads),
        number(blockIdx.x % per_task),
        half(blockIdx.x / per_task % 2 == 0 ? a.k : a.v),
        found(length_fits(a, sequence) ? columns_of(a, sequence) : Columns{}) {}
  // Of a token's row in a pool: that of the head's first one in a page.
  SPARSECORE_DEVICE int64_t first_row(const Args& a, int64_t page) const { return (page * a.kv_heads + head) * a.page; }
  // Of elements before the head's first new token in x.
  SPARSECORE_DEVICE int64_t first_new() const { return sequence * half.strides[0] + head * half.strides[1]; }
};

// Number: the integer type of a value's bits.
template <class Number>
__global__ void __launch_bounds__(kThreads) kv_append_compress_kernel(Args a, int64_t begun) {
  const Item item(a, begun);
  const int64_t column = item.found.fresh + item.number;
  if (column >= item.found.end) return;
  const int64_t old = a.leaving(item.sequence, column);
  if (old < 0 || !block_sound(a, item.sequence, item.found)) return;
  const Half& half = item.half;
  const int64_t length = a.lengths[item.sequence], d = a.head_dim;
  const Number* const dense =
      static_cast<const Number*>(half.dense) + item.first_row(a, -2 - a.entry(item.sequence, old)) * d;
  const Number* const x = static_cast<const Number*>(half.x) + item.first_new();
  const float* const weight = half.weight_of(item.sequence, item.head, d);
  const int64_t to = item.first_row(a, a.targets[item.sequence * a.columns + old]);
  for (int64_t i = warp_index(); i < a.page; i += kWarps) {
    const int64_t fresh = old * a.page + i - length;  // of the new tokens
    kv_compress_row(fresh < 0 ? dense + i * d : x + fresh * half.strides[2], a.value, weight, static_cast<int>(d),
                    static_cast<int>(half.keep), reinterpret_cast<uint32_t*>(half.bitmask) + (to + i) * kv_words(d),
                    static_cast<Number*>(half.values) + (to + i) * half.keep);
  }
}

// Rows of `bytes`, a multiple of a unit, `from` and `to` so many bytes apart.
template <class Unit>
SPARSECORE_DEVICE void copy_rows(const char* from, int64_t from_step, char* to, int bytes, int rows) {
  const int units = bytes / static_cast<int>(sizeof(Unit));
  for (int i = static_cast<int>(threadIdx.x); i < rows * units; i += kThreads) {
    const int row = i / units, unit = i % units;
    reinterpret_cast<Unit*>(to + row * bytes)[unit] = reinterpret_cast<const Unit*>(from + row * from_step)[unit];
  }
}

// wide: rows of x and of dense pages begin at multiples of 16 bytes.
__global__ void __launch_bounds__(kThreads) kv_append_write_kernel(Args a, int64_t written, bool wide) {
  const Item item(a, written);
  const int64_t column = item.found.begin + item.number, last = item.found.end - 1;
  if (column > last || !block_sound(a, item.sequence, item.found)) return;
  const int64_t entry = a.entry(item.sequence, column);
  bool filled = false;  // by a later column, all of it
  for (int64_t c = column + 1 + threadIdx.x; c < last; c += kThreads) filled |= a.entry(item.sequence, c) == entry;
  if (block_any(filled)) return;
  const Half& half = item.half;
  const int64_t length = a.lengths[item.sequence], at = column * a.page, total = length + a.tokens;
  const int64_t element = dtype_bytes(a.value), row = a.head_dim * element;
  int64_t begin = at > length ? at : length;
  const int64_t end = at + a.page < total ? at + a.page : total;
  if (column < last && a.entry(item.sequence, last) == entry) {  // which has its first slots
    const int64_t free = at + total - last * a.page;
    if (begin < free) begin = free;
  }
  if (begin >= end) return;
  const char* const from =
      static_cast<const char*>(half.x) + (item.first_new() + (begin - length) * half.strides[2]) * element;
  char* const to = static_cast<char*>(half.dense) + (item.first_row(a, -2 - entry) + begin - at) * row;
  const int64_t step = half.strides[2] * element;
  const int bytes = static_cast<int>(row), rows = static_cast<int>(end - begin);
  if (wide) copy_rows<Pack<uint32_t, 4>>(from, step, to, bytes, rows);
  else copy_rows<uint16_t>(from, step, to, bytes, rows);
}

__global__ void __launch_bounds__(kThreads) kv_append_advance_kernel(Args a) {
  const int64_t sequence = blockIdx.x;
  const int32_t length = a.lengths[sequence];
  const bool fits = length_fits(a, sequence);
  const Columns found = fits ? columns_of(a, sequence) : Columns{};
  const bool good = block_sound(a, sequence, found) && fits;
  if (good)
    for (int64_t column = found.fresh + threadIdx.x; column < found.end; column += kThreads) {
      const int64_t old = a.leaving(sequence, column), at = sequence * a.columns + old;
      if (old >= 0) a.page_table[at] = a.targets[at];
    }
  if (threadIdx.x == 0) a.lengths[sequence] = good ? length + static_cast<int32_t>(a.tokens) : -1;
}

bool is_wide(const Half& half, int64_t element) {
  uintptr_t any = reinterpret_cast<uintptr_t>(half.x) | reinterpret_cast<uintptr_t>(half.dense);
  for (const int64_t stride : half.strides) any |= static_cast<uintptr_t>(stride * element);
  return any % 16 == 0;
}

}  // namespace

const char* launch(const Args& a, void* stream) {
  const int64_t begun = (a.tokens + a.page - 1) / a.page;  // columns of a sequence, at most
  const int64_t written = a.tokens > 0 ? (a.tokens + a.page - 2) / a.page + 1 : 0, element = dtype_bytes(a.value);
  if (a.tasks() * written > 0x7fffffff) return "k: more tokens than a grid holds";
  const auto grid = [&](int64_t blocks) {
    return Grid{dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream};
  };
  const auto compress =
      a.value == Dtype::f32 ? kv_append_compress_kernel<uint32_t> : kv_append_compress_kernel<uint16_t>;
  if (const char* error = cuda::launch(compress, grid(a.tasks() * begun), a, begun)) return error;
  const bool wide = is_wide(a.k, element) && is_wide(a.v, element);
  if (const char* error = cuda::launch(kv_append_write_kernel, grid(a.tasks() * written), a, written, wide))
    return error;
  return cuda::launch(kv_append_advance_kernel, grid(a.batch), a);
}

}  // namespace sparsecore::kv_append
