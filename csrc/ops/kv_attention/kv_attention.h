// SPDX-License-Identifier: Apache-2.0
// kv_attention: attention of the latest tokens of every sequence to its pages (core/kv.h).
//
//   s[t] = scale * q . k[t]                       t over the tokens that q sees
//   s[t] = softcap * tanh(s[t] / softcap)         if softcap > 0
//   s[t] = s[t] + bias[t] - slope * (position of q - t)
//   lse = log sum exp s,   out = sum exp(s[t] - lse) v[t];   nothing seen: lse = -inf, out = 0
//
// Query i of q_tokens is token length - q_tokens + i of its sequence (before its begin: it sees nothing). It sees
// itself and what came before; with a window of w > 0 its last w tokens, itself among them. Query head h reads KV head
// h / (q_heads / kv_heads).
//
// `selected` leaves of a KV head's pages those in its list, in that order, and what lies in others is not read.
//
// With drop < 0 a query drops a block of up to 64 tokens of a page when each of their scores lies below the largest one
// of the split's blocks before by more than -drop (BLASST, arXiv 2512.12087: there a tile of queries does together).
// Where all queries of a panel drop a block its V is not read. What lse and out lose is at most 2^drop of the largest
// weight for each token.
//
// Work is cut into splits of kSplitTokens of one sequence and KV head, each with the queries of the whole group, so
// that a token is decompressed once for up to kPanel of them. A split leaves (m, l, sum) a query; merge adds them in
// order. Neither depends on the number of threads.
//
// One 2.8 GHz Ice Lake core that reads 10.3 GB/s, ns a token and KV head, 70 % zeros, bf16, head_dim 64: in cache 8.5 for
// one query, 16 for 3, 33 for 8 (AVX2 34 for 3); from memory 11.6 and 19, of which its 92 bytes need 9. To fetch the next
// block a token at a time took 64k tokens from 27 ns to 20; all at once before each block gained nothing.
//
// The arrays are untrusted: nothing outside them is read. Nothing aliases out, lse or partial.
#pragma once
#include "core/kv.h"
#include "cpu/kernel_table.h"

namespace sparsecore::kv_attention {

constexpr int64_t kSplitTokens = 512;  // at least; a split is whole pages
constexpr int64_t kPanel = 8;  // queries that share a decompression

struct Args {
  KvView cache;
  int64_t q_heads, q_tokens;
  const void* q;  // [batch, q_heads, q_tokens, head_dim] of query
  float scale, softcap;
  int64_t window;
  const float* bias;  // at bias + sequence, q head, q token, key times their strides; or null
  int64_t bias_strides[4];
  const float* slopes;  // [q_heads] or null
  int64_t splits;  // on the CPU: split_pages() each, for all that are listed
  float* partial;  // [batch, kv_heads, splits, queries, stride]: m, l in powers of 2, then head_dim sums
  void* out;  // [batch, q_heads, q_tokens, head_dim] of query
  float* lse;  // [batch, q_heads, q_tokens]
  Dtype query;  // f32, bf16, f16
  int64_t bias_keys;  // on CUDA: positions that bias has numbers for
  const int32_t* selected;  // [batch, kv_heads, selected_pages]: columns of page_table, each once, or -1; or null: all
  int64_t selected_pages;  // at most columns
  float drop;  // log2 of the threshold; 0: nothing is dropped

  SPARSECORE_INLINE int64_t group() const { return q_heads / cache.kv_heads; }
  // Queries of a KV head: token i of its head j is number i * group + j.
  SPARSECORE_INLINE int64_t queries() const { return group() * q_tokens; }
  SPARSECORE_INLINE int64_t split_pages() const { return (kSplitTokens + cache.page - 1) / cache.page; }
  // Pages to attend to at most where the longest sequence has `longest` tokens.
  SPARSECORE_INLINE int64_t listed(int64_t longest) const {
    return selected ? selected_pages : (longest + cache.page - 1) / cache.page;
  }
  SPARSECORE_INLINE int64_t stride() const { return cache.head_dim + 2; }
  SPARSECORE_INLINE int64_t tasks() const { return cache.batch * cache.kv_heads * splits; }
  // Of query number r of a KV head: its row in q, out and lse.
  SPARSECORE_INLINE int64_t row(int64_t sequence, int64_t kv_head, int64_t r) const {
    return (sequence * q_heads + kv_head * group() + r % group()) * q_tokens + r / group();
  }
};

struct Kernel {
  const char* name;
  cpu::Isa isa;
  // Bytes of working memory that run needs, 64-byte aligned.
  int64_t (*scratch_bytes)(const Args&);
  // Task (sequence * kv_heads + head) * splits + split. Returns whether what it read keeps the format's invariants;
  // lengths fit their pages, and selected has been checked.
  bool (*run)(const Args&, int64_t task, void* scratch);
  // Queries of sequence * kv_heads + head: from partial to out and lse.
  void (*merge)(const Args&, int64_t head);
};

cpu::KernelTable<Kernel> kernels();

// On CUDA: the same on a stream (a cudaStream_t), whose device holds every array; bitmasks, values and dense pages are
// aligned to 16 bytes. Lengths are on the device: `splits` says into how many pieces a sequence is cut at most, and
// device_splits how many serve caches of these shapes. Sequences are cut evenly, but a piece has at least
// kDeviceSplitTokens, so the answer depends on lengths and shapes alone. Nothing can be refused: a sequence whose length
// has no pages or no bias, and a KV head of a sequence that meets a page or bits that are none, has NaN as its rows of
// out and lse, and nothing outside the arrays is read; so has a KV head whose list names no column, or one twice. Blocks
// that are dropped are 16 tokens (32 without tensor cores), and what is before one is of the same warp. Reads nothing on
// the host, allocates nothing, may be captured. Null, or the error's text.
constexpr int64_t kDeviceSplitTokens = 128;
int64_t device_splits(const Args&);
const char* launch(const Args&, void* stream);

// Which pages a task attends to: numbers [begin, end) of the list of its sequence and KV head.
struct Task {
  int64_t sequence, head, begin, end;
  int64_t length, seen;  // positions [seen, length) are some query's
  const int32_t* list;  // or null: number = column

  SPARSECORE_INLINE Task(const Args& a, int64_t task) {
    const int64_t split = task % a.splits, row = task / a.splits, page = a.cache.page;
    sequence = row / a.cache.kv_heads;
    head = row % a.cache.kv_heads;
    length = a.cache.lengths[sequence];
    const int64_t before = a.window > 0 ? length - a.q_tokens - a.window + 1 : 0, listed = a.listed(length);
    seen = before > 0 ? before : 0;
    list = a.selected ? a.selected + row * a.selected_pages : nullptr;
    begin = split * a.split_pages();
    end = begin + a.split_pages() < listed ? begin + a.split_pages() : listed;
    if (!list && begin < seen / page) begin = seen / page;
  }
};

// Tokens [begin, end) of one page, by position.
struct Stretch {
  int64_t column, begin, end;
};
SPARSECORE_INLINE Stretch stretch(const Args& a, const Task& task, int64_t number) {
  const int64_t column = task.list ? task.list[number] : number, page = a.cache.page;
  if (column < 0) return {0, 0, 0};
  const int64_t first = column * page, last = first + page;
  const int64_t begin = first > task.seen ? first : task.seen, end = last < task.length ? last : task.length;
  return {column, begin, end > begin ? end : begin};
}

// What is wrong with a task that run refused.
SPARSECORE_INLINE KvFinding find_fault(const Args& a, int64_t number) {
  const Task task(a, number);
  for (int64_t i = task.begin; i < task.end; ++i) {
    const Stretch s = stretch(a, task, i);
    if (s.begin == s.end) continue;
    const KvFinding found = kv_check_page(a.cache, task.sequence, task.head, s.begin, s.end - s.begin);
    if (found.fault != KvFault::none) return found;
  }
  return {};
}

// Number of the first entry of selected that is no column, or one for the second time, or -1; last_row [columns] is
// working space.
SPARSECORE_INLINE int64_t find_selected_fault(const Args& a, int64_t* last_row) {
  for (int64_t i = 0; i < a.cache.columns; ++i) last_row[i] = -1;
  const int64_t count = a.selected ? a.cache.batch * a.cache.kv_heads * a.selected_pages : 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t column = a.selected[i], row = i / a.selected_pages;
    if (column == kKvNoPage) continue;
    if (column < 0 || column >= a.cache.columns || last_row[column] == row) return i;
    last_row[column] = row;
  }
  return -1;
}

}  // namespace sparsecore::kv_attention
