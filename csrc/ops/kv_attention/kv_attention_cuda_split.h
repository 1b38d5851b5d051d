// SPDX-License-Identifier: Apache-2.0
// What kv_attention's CUDA kernels share: which tokens a block has, where they lie, what a score becomes, and how the
// block's warps join what they made.
//
// A block has one split of one sequence and KV head and a panel of kPanel queries. Its warps take units of tokens in
// turn; each leaves, for every query of the panel, a line of stride() floats in shared memory: the maximum m of the
// scores in powers of 2, the sum l of 2^(s - m), and head_dim sums of 2^(s - m) v. The block adds its warps' lines in
// order and writes one to Args::partial.
#pragma once
#include "cuda/block.h"
#include "cuda/convert.h"
#include "ops/kv_attention/kv_attention.h"

namespace sparsecore::kv_attention {
namespace {

using namespace cuda;

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kLanes;
constexpr int kQueries = static_cast<int>(kPanel);
constexpr int kUnit = 16;  // tokens that lie together in every pool, at a multiple of 16 bytes
constexpr int kMostWords = 8;
constexpr float kLog2e = 0x1.715476p0f, kLn2 = 0x1.62e43p-1f;

SPARSECORE_DEVICE float minus_infinity() { return __uint_as_float(0xff800000u); }
SPARSECORE_DEVICE float nan() { return __uint_as_float(0x7fffffffu); }

// A sequence's pages end to end, or those of a KV head's list: tokens [first, last) of that walk are cut into splits.
// Queries see positions [seen, length).
struct Sequence {
  int length, seen, first, last;
  int64_t per_split;
  bool good;

  SPARSECORE_DEVICE Sequence(const Args& a, int64_t sequence) {
    length = a.cache.lengths[sequence];
    good = kv_length_fits(a.cache, sequence) && (!a.bias || length <= a.bias_keys);
    const int64_t whole = length;  // whatever it is
    const int64_t before = a.window > 0 && a.window < whole ? whole - a.q_tokens - a.window + 1 : 0;
    seen = before > 0 ? static_cast<int>(before) : 0;
    first = a.selected ? 0 : seen / kUnit * kUnit;
    last = a.selected ? static_cast<int>(a.selected_pages * a.cache.page) : length;
    const int64_t units = (static_cast<int64_t>(last) - first + kUnit - 1) / kUnit;
    per_split = (units + a.splits - 1) / a.splits * kUnit;
    if (per_split < kDeviceSplitTokens) per_split = kDeviceSplitTokens;
  }
  SPARSECORE_DEVICE int used_splits() const {
    return good ? static_cast<int>((last - first + per_split - 1) / per_split) : 0;
  }
};

// What a block does.
struct Item {
  int sequence, head;
  int length, seen, begin, end;  // tokens [begin, end) of the walk
  int window;              // 0: none
  int queries;             // of the panel
  int first_query;         // of the KV head's
  float* partial;          // of the first of them
  bool good;

  SPARSECORE_DEVICE explicit Item(const Args& a) {
    // A grid has fewer than 2^31 blocks.
    const unsigned panels = static_cast<unsigned>((a.queries() + kPanel - 1) / kPanel);
    const unsigned splits = static_cast<unsigned>(a.splits), heads = static_cast<unsigned>(a.cache.kv_heads);
    const unsigned number = blockIdx.x / panels, row = number / splits;
    first_query = static_cast<int>(blockIdx.x % panels) * kQueries;
    const int64_t split = number % splits;
    head = static_cast<int>(row % heads);
    sequence = static_cast<int>(row / heads);
    const int64_t left = a.queries() - first_query;
    queries = static_cast<int>(left < kPanel ? left : kPanel);
    partial = a.partial + (number * a.queries() + first_query) * a.stride();
    const Sequence s(a, sequence);
    good = s.good;
    length = s.length;
    seen = s.seen;
    window = a.window < length ? static_cast<int>(a.window) : 0;
    const int64_t from = s.first + split * s.per_split, to = from + s.per_split;
    begin = from > s.last ? s.last : static_cast<int>(from);
    end = to > s.last ? s.last : static_cast<int>(to);
  }
};

// The list of a KV head's columns. Not kept: tensor cores' kernel has no registers left.
SPARSECORE_DEVICE const int32_t* columns_of(const Args& a, const Item& item) {
  return a.selected + (item.sequence * a.cache.kv_heads + item.head) * a.selected_pages;
}

// Positions where nothing is to be read, and of pages that are none.
constexpr int kNothing = -1, kBroken = -2;

// Where a token lies: its row among all tokens of its pool.
struct Place {
  int64_t row;
  int position;
  bool dense;
};

// A token's position and its page's entry.
struct Look {
  int position;
  int32_t entry;
};

// A walk: the number of a page and the token's place in that page.
struct Column {
  int number, offset, page;

  SPARSECORE_DEVICE Column(const KvView& c, int token) {
    page = static_cast<int>(c.page);
    number = token / page;
    offset = token % page;
  }
  SPARSECORE_DEVICE void advance(int tokens) {
    for (offset += tokens; offset >= page; offset -= page) ++number;
  }
  // At `tokens` tokens of one page.
  SPARSECORE_DEVICE Look look(const Args& a, const Item& item, int tokens) const {
    const int column = a.selected ? columns_of(a, item)[number] : number;
    if (column == kKvNoPage) return {kNothing, 0};
    if (column < 0 || column >= a.cache.columns) return {kBroken, 0};
    const int position = column * page + offset;
    if (position >= item.length || position + tokens <= item.seen) return {kNothing, 0};
    return {position, a.cache.page_table[item.sequence * a.cache.columns + column]};
  }
  SPARSECORE_DEVICE Place place(const KvView& c, const Item& item, const Look& at) const {
    const bool dense = at.entry < 0;
    const int64_t index = dense ? -2 - static_cast<int64_t>(at.entry) : at.entry;
    return {(index * c.kv_heads + item.head) * c.page + offset,
            at.position < 0 || kv_is_entry(c, at.entry) ? at.position : kBroken, dense};
  }
};

// Whether the thread knows of a page of the block's that its list names once more later.
SPARSECORE_DEVICE bool named_twice(const Args& a, const Item& item) {
  if (!a.selected) return false;
  const int32_t* const list = columns_of(a, item);
  const int page = static_cast<int>(a.cache.page), begin = item.begin / page, end = (item.end - 1) / page + 1;
  const int count = static_cast<int>(a.selected_pages);
  bool twice = false;
  for (int j = begin + 1 + static_cast<int>(threadIdx.x); j < count; j += kThreads) {
    const int column = list[j];
    for (int i = begin; i < end && i < j; ++i) twice |= column != kKvNoPage && list[i] == column;
  }
  return twice;
}

struct Query {
  int position;
  const float* bias;  // of position 0, or null
  float slope;
  bool live;

  SPARSECORE_DEVICE Query(const Args& a, const Item& item, int r) {
    live = r < item.queries;
    const int number = item.first_query + (live ? r : 0), group = static_cast<int>(a.group()), token = number / group,
              head = item.head * group + number % group;
    position = static_cast<int>(item.length - a.q_tokens + token);
    bias = nullptr;
    if (a.bias)
      bias = a.bias + item.sequence * a.bias_strides[0] + head * a.bias_strides[1] + token * a.bias_strides[2];
    slope = a.slopes ? a.slopes[head] : 0.0f;
  }
};

// The score of q . k = product at a token, in powers of 2; -infinity where the query does not see it.
SPARSECORE_DEVICE float score(const Args& a, const Item& item, const Query& q, float product, int token) {
  const bool seen = q.live && token <= q.position && (item.window == 0 || token > q.position - item.window);
  float s = product * (a.scale * kLog2e);
  if (a.softcap > 0.0f) {  // tanh x = 1 - 2 / (exp 2x + 1), whose error is a few ulp of the bound
    const float bound = a.softcap * kLog2e;
    float x = s * (2.0f * kLog2e / bound);
    x = x < -60.0f ? -60.0f : x > 60.0f ? 60.0f : x;
    s = bound - 2.0f * bound / (exp2f(x) + 1.0f);
  }
  if (a.slopes) s -= q.slope * kLog2e * static_cast<float>(q.position - token);
  if (a.bias && seen) s += q.bias[token * a.bias_strides[3]] * kLog2e;
  return seen ? s : minus_infinity();
}

// What earlier sums are multiplied by when the maximum m becomes top; `shift` is what scores lose before exp2.
SPARSECORE_DEVICE float raise_maximum(float& m, float top, float& shift) {
  shift = top == minus_infinity() ? 0.0f : top;
  const float kept = exp2f(m - shift);
  m = top;
  return kept;
}

// Adds the warps' lines [kWarps][kQueries][stride].
SPARSECORE_DEVICE void join_warps(const Args& a, const Item& item, const float* lines) {
  const int stride = static_cast<int>(a.stride());
  for (int i = static_cast<int>(threadIdx.x); i < item.queries * stride; i += kThreads) {
    const int r = i / stride, at = i % stride;
    float top = minus_infinity();
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float m = lines[(w * kQueries + r) * stride];
      top = m > top ? m : top;
    }
    const float shift = top == minus_infinity() ? 0.0f : top;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float* const line = lines + (w * kQueries + r) * stride;
      if (line[1] != 0.0f) sum += exp2f(line[0] - shift) * line[at];  // 0: nothing seen
    }
    item.partial[i] = at == 0 ? top : sum;
  }
}

// For a block that met a page or bits that are none: merge makes these queries NaN.
SPARSECORE_DEVICE void refuse(const Args& a, const Item& item) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < 2 * item.queries) item.partial[thread / 2 * a.stride() + thread % 2] = nan();
}

}  // namespace
}  // namespace sparsecore::kv_attention
