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
  int64_t splits;  // of the longest sequence
  float* partial;  // [batch, kv_heads, splits, queries, stride]: m, l in powers of 2, then head_dim sums
  void* out;  // [batch, q_heads, q_tokens, head_dim] of query
  float* lse;  // [batch, q_heads, q_tokens]
  Dtype query;  // f32, bf16, f16
  int64_t bias_keys;  // on CUDA: positions that bias has numbers for

  SPARSECORE_INLINE int64_t group() const { return q_heads / cache.kv_heads; }
  // Queries of a KV head: token i of its head j is number i * group + j.
  SPARSECORE_INLINE int64_t queries() const { return group() * q_tokens; }
  SPARSECORE_INLINE int64_t split_tokens() const { return (kSplitTokens + cache.page - 1) / cache.page * cache.page; }
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
  // lengths fit their pages.
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
// out and lse, and nothing outside the arrays is read. Reads nothing on the host, allocates nothing, may be captured.
// Null, or the error's text.
constexpr int64_t kDeviceSplitTokens = 128;
int64_t device_splits(const Args&);
const char* launch(const Args&, void* stream);

// A task's tokens [begin, end): those of its split that some query sees.
struct Range {
  int64_t begin, end;
};
SPARSECORE_INLINE Range task_range(const Args& a, int64_t task) {
  const int64_t sequence = task / (a.cache.kv_heads * a.splits), split = task % a.splits;
  const int64_t length = a.cache.lengths[sequence];
  int64_t begin = split * a.split_tokens(), end = begin + a.split_tokens();
  if (end > length) end = length;
  const int64_t seen = a.window > 0 ? length - a.q_tokens - a.window + 1 : 0;
  if (begin < seen) begin = seen;
  return {begin, end > begin ? end : begin};
}

// What is wrong with a task that run refused.
SPARSECORE_INLINE KvFinding find_fault(const Args& a, int64_t task) {
  const Range range = task_range(a, task);
  const int64_t head = task / a.splits % a.cache.kv_heads, sequence = task / a.splits / a.cache.kv_heads;
  const int64_t page = a.cache.page;
  for (int64_t first = range.begin, next; first < range.end; first = next) {
    next = (first / page + 1) * page;
    const int64_t live = (range.end < next ? range.end : next) - first;
    const KvFinding found = kv_check_page(a.cache, sequence, head, first, live);
    if (found.fault != KvFault::none) return found;
  }
  return {};
}

}  // namespace sparsecore::kv_attention
