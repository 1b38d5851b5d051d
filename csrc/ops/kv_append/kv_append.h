// SPDX-License-Identifier: Apache-2.0
// kv_append: the next tokens' K and V into the pages of every sequence (core/kv.h), in place. Token by token, at
// position p = the sequence's length, in column j = p / page of its table:
//
//   if p begins column j, and column c = j - recent is dense and has a target:
//     its tokens are compressed by kv_compress's rule, weights and all, into page target[c], which becomes its entry
//   the token is written to column j's dense page, and the length grows by one
//
//   recent = 2   before   [ -2 | 4  | -3 | -4 || -3 | -4 | ...]   || after the last token; column 0 has no target,
//                after    [ -2 | 4  | 5  | -4 | -3 || -4 | ...]   column 2's was 5, and column 4 takes its dense page
//
// So the last `recent` columns are dense, the one that fills among them. Entries past the length say which dense page
// each column will have; columns `recent` apart may name the same one, for it is compressed before it is written again.
//
// Nothing is read on the host but by find_fault, and all that a call does follows from the tables as they were: tasks
// run in any order, then advance rewrites tables and lengths. K, V and their pools do not overlap. A page that one
// sequence changes here is no other's.
//
// One 2.8 GHz Ice Lake core, 8 heads of 128 in bf16, pages of 64, through torch: a token that begins no page 7 us, nearly
// all of it the checks of eleven arrays; one that does 430, so that compression costs 6.6 us a token.
#pragma once
#include "core/kv.h"
#include "cpu/kernel_table.h"

namespace sparsecore::kv_append {

// The new tokens of K, or of V, and its pages.
struct Half {
  const void* x;  // [batch, kv_heads, tokens, head_dim] of value, adjacent channels
  int64_t strides[3];  // elements between sequences, heads, tokens of x
  uint8_t* bitmask;  // [pages, kv_heads, page, 4 * words]
  void* values;  // [pages, kv_heads, page, keep] of value
  void* dense;  // [dense_pages, kv_heads, page, head_dim] of value
  int64_t keep;
  const float* weight;  // [kv_heads, head_dim], of each sequence so many elements on; or null
  int64_t weight_step;

  SPARSECORE_INLINE const float* weight_of(int64_t sequence, int64_t head, int64_t head_dim) const {
    return weight ? weight + sequence * weight_step + head * head_dim : nullptr;
  }
};

struct Args {
  int64_t batch, kv_heads, head_dim, page;
  int64_t columns;  // of page_table and targets
  int64_t pages, dense_pages;
  int64_t tokens, recent;
  Half k, v;
  int32_t* page_table;  // [batch, columns]
  int32_t* lengths;  // [batch]
  const int32_t* targets;  // [batch, columns]: a page of the compressed pool, or -1: the column stays dense
  Dtype value;  // f32, bf16, f16

  SPARSECORE_INLINE int64_t tasks() const { return batch * kv_heads * 2; }
  // The entry that a column has when its tokens are written.
  SPARSECORE_INLINE int64_t entry(int64_t sequence, int64_t column) const {
    return page_table[sequence * columns + column];
  }
  // The column that is compressed as `column` begins, or -1.
  SPARSECORE_INLINE int64_t leaving(int64_t sequence, int64_t column) const {
    const int64_t c = column - recent;
    return c >= 0 && targets[sequence * columns + c] >= 0 && entry(sequence, c) < kKvNoPage ? c : -1;
  }
};

struct Kernel {
  const char* name;
  cpu::Isa isa;
  // Task (sequence * kv_heads + head) * 2, K's, and + 1, V's, of sequences without a fault.
  void (*run)(const Args&, int64_t task);
};

cpu::KernelTable<Kernel> kernels();

// Columns [begin, end) that get tokens, of a sequence whose length fits; those from `fresh` on begin.
struct Columns {
  int64_t begin, fresh, end;
};
SPARSECORE_INLINE Columns columns_of(const Args& a, int64_t sequence) {
  const int64_t length = a.lengths[sequence];
  return {length / a.page, (length + a.page - 1) / a.page,
          a.tokens > 0 ? (length + a.tokens - 1) / a.page + 1 : length / a.page};
}

enum class Fault : int32_t { none, length, entry, leaving, target };

struct Finding {
  Fault fault = Fault::none;
  int64_t column = 0, value = 0;  // value: the offending length, entry or target
};

SPARSECORE_INLINE bool length_fits(const Args& a, int64_t sequence) {
  return a.lengths[sequence] >= 0 && a.lengths[sequence] <= a.columns * a.page - a.tokens;
}

// What is wrong with one of `found`, the columns of a sequence that get tokens, or with the one that leaves as it begins.
SPARSECORE_INLINE Finding column_fault(const Args& a, int64_t sequence, const Columns& found, int64_t column) {
  const int64_t entry = a.entry(sequence, column), c = column - a.recent;
  if (entry >= kKvNoPage || -2 - entry >= a.dense_pages) return {Fault::entry, column, entry};
  if (column < found.fresh || c < 0) return {};
  const int64_t target = a.targets[sequence * a.columns + c], old = a.entry(sequence, c);
  if (target < -1 || target >= a.pages) return {Fault::target, c, target};
  if (target >= 0 && (old == kKvNoPage || old >= a.pages || -2 - old >= a.dense_pages)) return {Fault::leaving, c, old};
  return {};
}

// What is wrong with a sequence; looked for before anything is changed.
SPARSECORE_INLINE Finding find_fault(const Args& a, int64_t sequence) {
  if (!length_fits(a, sequence)) return {Fault::length, 0, a.lengths[sequence]};
  const Columns found = columns_of(a, sequence);
  for (int64_t column = found.begin; column < found.end; ++column) {
    const Finding finding = column_fault(a, sequence, found, column);
    if (finding.fault != Fault::none) return finding;
  }
  return {};
}

// The sequence's table and length, once its tasks are done.
SPARSECORE_INLINE void advance(const Args& a, int64_t sequence) {
  const Columns found = columns_of(a, sequence);
  for (int64_t column = found.fresh; column < found.end; ++column) {
    const int64_t at = sequence * a.columns + column - a.recent;
    if (a.leaving(sequence, column) >= 0) a.page_table[at] = a.targets[at];
  }
  a.lengths[sequence] += static_cast<int32_t>(a.tokens);
}

// On CUDA: the same for all sequences on a stream (a cudaStream_t), whose device holds every array; bitmasks are aligned
// to 4 bytes. Nothing can be refused: a sequence with a fault gets no tokens, its pages and its row of page_table stay,
// and its length is -1 from then on, for which kv_attention's answer is NaN. Pages that two sequences change hold
// something of both, and so does what is compressed of columns nearer than `recent` that name one dense page; nothing
// outside the arrays is read or written. Reads nothing on the host, allocates nothing, may be captured. Null, or the
// error's text.
const char* launch(const Args&, void* stream);

}  // namespace sparsecore::kv_append
