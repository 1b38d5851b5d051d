// SPDX-License-Identifier: Apache-2.0
// A split of kv_attention by multiply-adds: any dtypes. A warp takes 32 tokens at a time. First a lane has a token of
// its own, finds it and counts its bits; then a lane has channels l, 32 + l, ... of four tokens at once, whose ranks
// among the stored ones are counts of bits; its products with the queries, which lie in shared memory, are added over
// lanes, six shuffles for four tokens. A lane with a token again makes weights, and with channels the sums.
#pragma once
#include "ops/kv_attention/kv_attention_cuda_split.h"

namespace sparsecore::kv_attention {
namespace {

// Shared memory: queries as floats [kQueries][kMostWords * kLanes], each warp's places and scores [kQueries][kLanes],
// lines.
constexpr int kQueryFloats = kQueries * kMostWords * kLanes;
constexpr int kScoreFloats = (2 + kQueries) * kLanes;
SPARSECORE_INLINE int64_t plain_shared_bytes(const Args& a) {
  return 4 * (kQueryFloats + kWarps * (kScoreFloats + kQueries * a.stride()));
}

SPARSECORE_DEVICE unsigned token_word(const KvView& c, const KvPool& pool, const Place& at, int w) {
  const int words = static_cast<int>(kv_words(c.head_dim));
  if (at.dense) return w == words - 1 ? ~kv_padding(c.head_dim) : ~0u;
  return reinterpret_cast<const uint32_t*>(pool.bitmask)[at.row * words + w];
}

SPARSECORE_DEVICE bool token_holds(const KvView& c, const KvPool& pool, const Place& at) {
  if (at.dense) return true;
  const int words = static_cast<int>(kv_words(c.head_dim));
  int count = 0;
  unsigned last = 0;
  for (int w = 0; w < words; ++w) count += __popc(last = token_word(c, pool, at, w));
  return count == pool.keep && (last & kv_padding(c.head_dim)) == 0;
}

// Channel 32 w + lane of a token; `before` of its values lie below channel 32 w, and become those below 32 (w + 1).
SPARSECORE_DEVICE float channel(const KvView& c, const KvPool& pool, const Place& at, int w, int& before) {
  const unsigned word = token_word(c, pool, at, w), below = (1u << lane_index()) - 1;
  const int64_t index = at.row * (at.dense ? c.head_dim : pool.keep) + before + __popc(word & below);
  before += __popc(word);
  return word >> lane_index() & 1 ? load_float(at.dense ? pool.dense : pool.values, c.value, index) : 0.0f;
}

// A warp's tokens in shared memory: the row of each, twice, and whether its page is dense.
SPARSECORE_DEVICE int64_t folded(const Place& at) { return at.row * 2 + at.dense; }
SPARSECORE_DEVICE Place unfolded(int64_t place) { return {place >> 1, 0, (place & 1) != 0}; }

// Queries to shared memory, by the block.
SPARSECORE_DEVICE void load_queries(const Args& a, const Item& item, float* q) {
  const int d = static_cast<int>(a.cache.head_dim);
  for (int r = 0; r < item.queries; ++r) {
    const int64_t row = a.row(item.sequence, item.head, item.first_query + r) * d;
    for (int i = static_cast<int>(threadIdx.x); i < kMostWords * kLanes; i += kThreads)
      q[r * kMostWords * kLanes + i] = i < d ? load_float(a.q, a.query, row + i) : 0.0f;
  }
}

// Leaves the warp's lines; false where a page or bits are none.
SPARSECORE_DEVICE bool plain_warp(const Args& a, const Item& item, const float* q, int64_t* places, float* lines) {
  const KvView& c = a.cache;
  float* const scores = reinterpret_cast<float*>(places + kLanes);
  const int lane = lane_index(), words = static_cast<int>(kv_words(c.head_dim)), live = item.queries;
  float m[kQueries], l[kQueries], sums[kQueries][kMostWords];
#pragma unroll
  for (int r = 0; r < kQueries; ++r) {
    m[r] = minus_infinity();
    l[r] = 0.0f;
#pragma unroll
    for (int w = 0; w < kMostWords; ++w) sums[r][w] = 0.0f;
  }
  for (int first = item.begin + warp_index() * kLanes; first < item.end; first += kThreads) {
    Place mine{0, kNothing, false};
    if (first + lane < item.end) {
      const Column column(c, first + lane);
      mine = column.place(c, item, column.look(a, item, 1));
    }
    const bool inside = mine.position >= 0;
    const bool holds = inside ? token_holds(c, c.k, mine) && token_holds(c, c.v, mine) : mine.position == kNothing;
    if (warp_any(!holds)) return false;
    const unsigned tokens = warp_ballot(inside);
    if (tokens == 0) continue;
    const int begin = __ffs(static_cast<int>(tokens)) - 1, end = kLanes - __clz(static_cast<int>(tokens));
    const int64_t one = warp_shuffle(folded(mine), begin);
    places[lane] = inside ? folded(mine) : one;
    warp_sync();
    for (int four = begin / 4 * 4; four < end; four += 4) {
      Place at[4];
      int before[4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) at[i] = unfolded(places[four + i]);
      float products[kQueries][4] = {};
      for (int w = 0; w < words; ++w) {
        float k[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) k[i] = channel(c, c.k, at[i], w, before[i]);
#pragma unroll
        for (int r = 0; r < kQueries; ++r) {
          if (r >= live) break;
          const float x = q[(r * kMostWords + w) * kLanes + lane];
#pragma unroll
          for (int i = 0; i < 4; ++i) products[r][i] = fmaf(x, k[i], products[r][i]);
        }
      }
#pragma unroll
      for (int r = 0; r < kQueries; ++r) {
        if (r >= live) break;
        // Four sums over lanes at once: lane l ends with that of token l % 4.
        float (&p)[4] = products[r];
#pragma unroll
        for (int half = 2; half > 0; half /= 2)
#pragma unroll
          for (int i = 0; i < half; ++i) {
            const bool upper = (lane & half) != 0;
            const float give = upper ? p[i] : p[i + half], keep = upper ? p[i + half] : p[i];
            p[i] = keep + warp_exchange(give, half);
          }
        float sum = p[0];
#pragma unroll
        for (int step = 4; step < kLanes; step *= 2) sum += warp_exchange(sum, step);
        if (lane / 4 == r) scores[r * kLanes + four + lane % 4] = sum;
      }
    }
    warp_sync();
    bool needed = false;
#pragma unroll
    for (int r = 0; r < kQueries; ++r) {
      if (r >= live) break;
      const float s =
          inside ? score(a, item, Query(a, item, r), scores[r * kLanes + lane], mine.position) : minus_infinity();
      if (a.drop < 0.0f && !warp_any(inside && !(s < m[r] + a.drop))) {  // NaN is not dropped
        scores[r * kLanes + lane] = 0.0f;
        continue;
      }
      needed = true;
      float top = s, shift;
#pragma unroll
      for (int step = kLanes / 2; step > 0; step /= 2) {
        const float other = warp_exchange(top, step);
        top = other > top ? other : top;
      }
      const float kept = raise_maximum(m[r], top > m[r] ? top : m[r], shift), weight = exp2f(s - shift);
      l[r] = l[r] * kept + weight;
#pragma unroll
      for (int w = 0; w < kMostWords; ++w) sums[r][w] *= kept;
      scores[r * kLanes + lane] = weight;
    }
    if (!needed) continue;
    warp_sync();
    for (int i = begin; i < end; ++i) {
      if ((tokens >> i & 1) == 0) continue;
      const Place at = unfolded(places[i]);
      int before = 0;
#pragma unroll
      for (int w = 0; w < kMostWords; ++w) {
        if (w >= words) break;
        const float v = channel(c, c.v, at, w, before);
#pragma unroll
        for (int r = 0; r < kQueries; ++r)
          if (r < live) sums[r][w] = fmaf(scores[r * kLanes + i], v, sums[r][w]);
      }
    }
    warp_sync();
  }
#pragma unroll
  for (int r = 0; r < kQueries; ++r) {
    if (r >= live) break;
    float* const line = lines + r * a.stride();
    const float whole = warp_sum(l[r]);
    if (lane == 0) {
      line[0] = m[r];
      line[1] = whole;
    }
#pragma unroll
    for (int w = 0; w < kMostWords; ++w)
      if (w * kLanes + lane < c.head_dim) line[2 + w * kLanes + lane] = sums[r][w];
  }
  return true;
}

// A block's split. `shared` has plain_shared_bytes.
SPARSECORE_DEVICE void plain_split(const Args& a, const Item& item, float* shared) {
  int64_t* const places = reinterpret_cast<int64_t*>(shared + kQueryFloats + warp_index() * kScoreFloats);
  float* const lines = shared + kQueryFloats + kWarps * kScoreFloats;
  load_queries(a, item, shared);
  block_sync();
  const bool good = plain_warp(a, item, shared, places, lines + warp_index() * kQueries * a.stride());
  if (block_any(!good || named_twice(a, item))) return refuse(a, item);
  join_warps(a, item, lines);
}

}  // namespace
}  // namespace sparsecore::kv_attention
