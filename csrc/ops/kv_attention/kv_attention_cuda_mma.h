// SPDX-License-Identifier: Apache-2.0
// A split of kv_attention by tensor cores: queries and values of one 16-bit dtype. A warp takes units of 16 tokens,
// whose bits and values it has copied to shared memory as they are, the next unit while it works on this one.
//
//   scores  [16 tokens, 8 queries] = K [16, d] . q^T      lane (g, t), g = lane / 4, t = lane % 4, expands channels
//                                                         t d/4 .. of tokens g and g + 8 to registers: fragments of A
//   sums    [d, 8 queries] += V^T [d, 16] . weights       lane (g, t) expands channels g d/8 .. of tokens 2 t, 2 t + 1,
//                                                         2 t + 8, 2 t + 9
//
// Sums do not ask for an order of channels, so each lane has adjacent ones and walks through their values with one
// pointer, a predicated load a channel; where it begins is a sum of counts of bits over the lanes of a token. q is laid
// out to match. Scores are transposed to B's fragments by movmatrix. 16 bits do not hold a weight, so it goes as two
// numbers, whose sum is right to 2^-16 of it (bfloat16) or 2^-21 of it and 2^-38 (float16, times 2^15). Both are above
// 0 where the weight is, for an infinity in V must become one of the sum, and not 0 * infinity.
#pragma once
#include "cuda/copy.h"
#include "cuda/mma.h"
#include "ops/kv_attention/kv_attention_cuda_split.h"

namespace sparsecore::kv_attention {
namespace {

constexpr int kMostTiles = 16;  // of 16 channels

// Shared memory: q [ceil(d / 16) steps][32 lanes] of B's registers, then two stages for each warp, of K and V each:
//   a compressed unit   bits [16][words], values [16][row]; row: keep, and 8 more where rows would all begin in one bank
//   a dense one         [16][d + 8]
struct Stage {
  int row[2];  // elements, of K and V
  int values[2];  // bytes from the stage's begin
  int bits[2];
};
SPARSECORE_INLINE int64_t padded_row(int64_t elements) {
  return elements % 8 == 0 && elements > 0 ? elements + 8 : elements;
}
SPARSECORE_INLINE Stage stage_of(const KvView& c, bool dense) {
  const int64_t mask = dense ? 0 : kUnit * 4 * kv_words(c.head_dim);
  const int64_t k = padded_row(dense ? c.head_dim : c.k.keep), v = padded_row(dense ? c.head_dim : c.v.keep);
  Stage s{};
  s.row[0] = static_cast<int>(k);
  s.row[1] = static_cast<int>(v);
  s.bits[1] = static_cast<int>(mask);
  s.values[0] = static_cast<int>(2 * mask);
  s.values[1] = static_cast<int>(2 * mask + kUnit * 2 * k);
  return s;
}
SPARSECORE_INLINE int64_t stage_bytes(const KvView& c) {
  const Stage packed = stage_of(c, false), dense = stage_of(c, true);
  const int64_t p = packed.values[1] + kUnit * 2 * packed.row[1], q = dense.values[1] + kUnit * 2 * dense.row[1];
  return c.dense_pages > 0 && q > p ? q : p;
}
SPARSECORE_INLINE int64_t query_bytes(const Args& a) { return (a.cache.head_dim + 15) / 16 * kLanes * 8; }
SPARSECORE_INLINE int64_t mma_shared_bytes(const Args& a) {
  const int64_t stages = query_bytes(a) + 2 * kWarps * stage_bytes(a.cache), lines = 4 * kWarps * kQueries * a.stride();
  return stages > lines ? stages : lines;
}

// Copies 16 rows of `elements` 16-bit elements, which lie together, to rows `row` elements apart.
SPARSECORE_DEVICE void copy_rows(char* to, const void* from, int elements, int row) {
  const int chunks = 2 * elements, pad = 2 * (row - elements);  // 16-byte pieces
  if (pad == 0) {
    for (int i = lane_index(); i < chunks; i += kLanes)
      async_copy<16>(to + 16 * i, static_cast<const char*>(from) + 16 * i);
  } else {
    const int per = elements / 8, inverse = (65535 + per) / per;  // i / per = i * inverse >> 16, as i < 512
    for (int i = lane_index(); i < chunks; i += kLanes)
      async_copy<16>(to + 16 * i + (i * inverse >> 16) * pad, static_cast<const char*>(from) + 16 * i);
  }
}

// Starts the copies of the unit whose first token is `token`.
SPARSECORE_DEVICE void fetch(const KvView& c, const Place& at, char* stage) {
  const Stage s = stage_of(c, at.dense);
  const int d = static_cast<int>(c.head_dim), words = static_cast<int>(kv_words(d));
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const KvPool& pool = half == 0 ? c.k : c.v;
    if (at.dense) {
      copy_rows(stage + s.values[half], static_cast<const char*>(pool.dense) + at.row * d * 2, d, s.row[half]);
    } else {
      copy_rows(stage + s.bits[half], pool.bitmask + at.row * words * 4, 2 * words, 2 * words);
      const int keep = static_cast<int>(pool.keep);
      copy_rows(stage + s.values[half], static_cast<const char*>(pool.values) + at.row * keep * 2, keep, s.row[half]);
    }
  }
}

// A lane's channels of a token: bits, lowest first, and the values that they stand for.
struct Walk {
  uint32_t low, high;
  ptx::SharedAddress next;

  // 16 bits of channel `bit`; channels are asked for in order.
  SPARSECORE_DEVICE uint32_t take(int bit) { return ptx::take_shared(low & (1u << bit), next); }
  SPARSECORE_DEVICE void skip(int bits) {
    low = low >> bits | high << (32 - bits);
    high >>= bits;
  }
};
SPARSECORE_DEVICE uint32_t pair_of(uint32_t low, uint32_t high) { return __byte_perm(low, high, 0x5410); }

// Bits [from, from + count), at most 64, of a token's words.
SPARSECORE_DEVICE void cut_bits(const uint32_t* words, int total, int from, int count, uint32_t& low, uint32_t& high) {
  const int w = from / 32, shift = from % 32;
  const uint64_t first = words[w];
  const uint64_t second = w + 1 < total && shift + count > 32 ? words[w + 1] : 0;
  const uint64_t third = w + 2 < total && shift + count > 64 ? words[w + 2] : 0;
  low = static_cast<uint32_t>((first | second << 32) >> shift);
  high = static_cast<uint32_t>((second | third << 32) >> shift);
  if (count < 32) low &= (1u << count) - 1;
  if (count <= 32) high = 0;
  else if (count < 64) high &= (1u << (count - 32)) - 1;
}

// A weight of [0, 1] times `scale` as two 16-bit numbers.
struct Halves {
  uint32_t high, low;
};
template <class Mma>
struct Weights;
template <>
struct Weights<MmaBf16> {
  static constexpr float scale = 1.0f;
  SPARSECORE_DEVICE static Halves of(float weight) {
    const uint32_t high = __float_as_uint(weight) >> 16;
    const float rest = weight - __uint_as_float(high << 16), least = weight * 0x1p-24f;
    return {high, ptx::f32_to_bf16(rest > least ? rest : least)};
  }
};
template <>
struct Weights<MmaF16> {
  static constexpr float scale = 0x1p15f;
  SPARSECORE_DEVICE static Halves of(float weight) {
    const float least = weight > 0.0f ? 0x1p-24f : 0.0f, x = weight * scale > least ? weight * scale : least;
    const uint16_t high = ptx::f32_to_f16(__uint_as_float(__float_as_uint(x) & 0xffffe000u));
    const float rest = x - widen(F16{high});
    return {high, ptx::f32_to_f16(rest > least ? rest : least)};
  }
};

// q's fragments to shared memory, by the block.
SPARSECORE_DEVICE void load_query_fragments(const Args& a, const Item& item, uint2* fragments) {
  const int d = static_cast<int>(a.cache.head_dim), steps = (d + 15) / 16;
  const uint16_t* const q = static_cast<const uint16_t*>(a.q);
  for (int i = static_cast<int>(threadIdx.x); i < steps * kLanes; i += kThreads) {
    const int lane = i % kLanes, r = lane / 4, within = i / kLanes * 4;
    uint32_t pairs[2] = {0, 0};
    if (r < item.queries) {
      const int64_t from = a.row(item.sequence, item.head, item.first_query + r) * d + lane % 4 * (d / 4) + within;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (within + j < d / 4) pairs[j / 2] |= static_cast<uint32_t>(q[from + j]) << 16 * (j % 2);
    }
    fragments[i] = make_uint2(pairs[0], pairs[1]);
  }
}

// Leaves the warp's lines once the block has met (block_sync); false where a page or bits are none.
template <class Mma>
SPARSECORE_DEVICE bool mma_warp(const Args& a, const Item& item, const uint2* q, char* stages, int64_t apart,
                                float* lines) {
  const KvView& c = a.cache;
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  const int d = static_cast<int>(c.head_dim), words = static_cast<int>(kv_words(d)), steps = (d + 15) / 16;
  const Query query[2] = {Query(a, item, 2 * t), Query(a, item, 2 * t + 1)};
  FragmentC<float> sums[kMostTiles];
#pragma unroll
  for (int j = 0; j < kMostTiles; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[j].c[i] = 0.0f;
  float m[2] = {minus_infinity(), minus_infinity()}, l[2] = {0.0f, 0.0f};
  bool good = true;

  constexpr int kStep = kWarps * kUnit;
  int first = item.begin / kUnit * kUnit + warp_index() * kUnit;
  Place at{0, false, true}, next{0, false, true};
  Column column(c, item.sequence, first);
  int32_t entry = 0;  // of the unit after this one, asked for in time
  if (first < item.end) {
    at = place(c, item.head, column.offset, *column.entry);
    if (at.good) fetch(c, at, stages);
  }
  async_commit();
  column.advance(kStep);
  if (first + kStep < item.end) entry = *column.entry;
  for (int turn = 0; first < item.end; first += kStep, turn ^= 1) {
    good = good && at.good;
    if (!good) break;  // the whole warp
    if (first + kStep < item.end) {
      next = place(c, item.head, column.offset, entry);
      if (next.good) fetch(c, next, stages + (turn ^ 1) * apart);
      column.advance(kStep);
      if (first + 2 * kStep < item.end) entry = *column.entry;
    }
    async_commit();
    async_wait<1>();
    warp_sync();
    const char* const stage = stages + turn * apart;
    const Stage s = stage_of(c, at.dense);
    const int keep_k = at.dense ? d : static_cast<int>(c.k.keep), keep_v = at.dense ? d : static_cast<int>(c.v.keep);

    // Where the lane's channels begin: those of K in tokens g, g + 8; of V in 2 t, 2 t + 1, 2 t + 8, 2 t + 9.
    bool bad = false;
    Walk k[2], v[4];
    {
      const uint32_t* const bits = reinterpret_cast<const uint32_t*>(stage + s.bits[0]);
      const int count = d / 4;
      int own = 0;  // of both tokens, 16 bits each
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = g + 8 * i;
        const bool inside = first + token >= item.begin && first + token < item.end;
        k[i].low = k[i].high = 0;
        if (at.dense) {
          k[i].low = count < 32 ? (1u << count) - 1 : ~0u;
          k[i].high = count <= 32 ? 0 : count < 64 ? (1u << (count - 32)) - 1 : ~0u;
        } else if (inside) {
          cut_bits(bits + token * words, words, t * count, count, k[i].low, k[i].high);
          bad |= (bits[token * words + words - 1] & kv_padding(d)) != 0;
        }
        own |= (__popc(k[i].low) + __popc(k[i].high)) << 16 * i;
      }
      int sum = own;
#pragma unroll
      for (int step = 1; step < 4; step *= 2) {
        const int before = warp_shuffle(sum, lane - (t >= step ? step : 0));
        if (t >= step) sum += before;
      }
      const int all = warp_shuffle(sum, lane | 3), before = sum - own;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = g + 8 * i;
        const bool inside = first + token >= item.begin && first + token < item.end;
        bad |= inside && (all >> 16 * i & 0xffff) != keep_k;
        k[i].next = ptx::shared_address(stage + s.values[0] + 2 * (token * s.row[0] + (before >> 16 * i & 0xffff)));
      }
    }
    {
      const uint32_t* const bits = reinterpret_cast<const uint32_t*>(stage + s.bits[1]);
      const int count = d / 8;
      int own[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = 2 * t + i % 2 + i / 2 * 8;
        const bool inside = first + token >= item.begin && first + token < item.end;
        v[i].low = v[i].high = 0;
        if (at.dense) {
          if (inside) v[i].low = count < 32 ? (1u << count) - 1 : ~0u;
        } else if (inside) {
          cut_bits(bits + token * words, words, g * count, count, v[i].low, v[i].high);
          bad |= (bits[token * words + words - 1] & kv_padding(d)) != 0;
        }
        own[i / 2] |= __popc(v[i].low) << 16 * (i % 2);
      }
      int sum[2] = {own[0], own[1]};
#pragma unroll
      for (int step = 1; step < 8; step *= 2)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int before = warp_shuffle(sum[i], lane - (g >= step ? 4 * step : 0));
          if (g >= step) sum[i] += before;
        }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = 2 * t + i % 2 + i / 2 * 8, shift = 16 * (i % 2);
        const bool inside = first + token >= item.begin && first + token < item.end;
        const int all = warp_shuffle(sum[i / 2], 28 + t) >> shift & 0xffff;
        const int before = (sum[i / 2] - own[i / 2]) >> shift & 0xffff;
        bad |= inside && all != keep_v;
        v[i].next = ptx::shared_address(stage + s.values[1] + 2 * (token * s.row[1] + before));
      }
    }
    if (warp_any(bad)) {
      good = false;
      break;
    }

    FragmentC<float> scores{{0.0f, 0.0f, 0.0f, 0.0f}};
    for (int step = 0; step < steps; ++step) {
      FragmentA<2> tokens;
#pragma unroll
      for (int pair = 0; pair < 2; ++pair)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint32_t low = k[i].take(2 * pair);
          tokens.r[2 * pair + i] = pair_of(low, k[i].take(2 * pair + 1));
        }
      k[0].skip(4);
      k[1].skip(4);
      const uint2 pairs = q[step * kLanes + lane];
      mma<Mma>(scores, tokens, {{pairs.x, pairs.y}});
    }

    // Weights: numbers 0, 1 of a fragment of C are token g's for the lane's two queries, 2, 3 token g + 8's.
    float w[4], kept[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = score(a, item, query[i % 2], scores.c[i], first + g + i / 2 * 8);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float top = w[i] > w[i + 2] ? w[i] : w[i + 2], shift;
#pragma unroll
      for (int step = 4; step < kLanes; step *= 2) {
        const float other = warp_exchange(top, step);
        top = other > top ? other : top;
      }
      kept[i] = raise_maximum(m[i], top > m[i] ? top : m[i], shift);
      w[i] = exp2f(w[i] - shift);
      w[i + 2] = exp2f(w[i + 2] - shift);
      l[i] = l[i] * kept[i] + w[i] + w[i + 2];
    }
    if (warp_any(kept[0] != 1.0f || kept[1] != 1.0f)) {
#pragma unroll
      for (int j = 0; j < kMostTiles; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[j].c[i] *= kept[i % 2];
    }
    FragmentB<2, 2> weights, rest;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Halves one = Weights<Mma>::of(w[2 * i]), other = Weights<Mma>::of(w[2 * i + 1]);
      weights.r[i] = ptx::movmatrix(one.high | other.high << 16);
      rest.r[i] = ptx::movmatrix(one.low | other.low << 16);
    }
#pragma unroll
    for (int j = 0; j < kMostTiles; ++j) {
      if (j >= steps) break;
      FragmentA<2> channels;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t e[2][2];
#pragma unroll
        for (int token = 0; token < 2; ++token)
#pragma unroll
          for (int channel = 0; channel < 2; ++channel) e[token][channel] = v[2 * i + token].take(2 * j + channel);
        channels.r[2 * i] = pair_of(e[0][0], e[1][0]);
        channels.r[2 * i + 1] = pair_of(e[0][1], e[1][1]);
      }
      mma<Mma>(sums[j], channels, weights);
      mma<Mma>(sums[j], channels, rest);
    }
    warp_sync();  // before the stage is written again
    at = next;
  }
  async_wait<0>();
  block_sync();  // all stages are read: lines lie there
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float whole = l[i];
#pragma unroll
    for (int step = 4; step < kLanes; step *= 2) whole += warp_exchange(whole, step);
    float* const line = lines + (2 * t + i) * a.stride();
    if (g == 0) {
      line[0] = m[i];
      line[1] = whole;
    }
    constexpr float kOver = 1.0f / Weights<Mma>::scale;
    const int count = d / 8;
#pragma unroll
    for (int j = 0; j < kMostTiles; ++j) {
      if (2 * j < count) line[2 + g * count + 2 * j] = sums[j].c[i] * kOver;
      if (2 * j + 1 < count) line[2 + g * count + 2 * j + 1] = sums[j].c[2 + i] * kOver;
    }
  }
  return good;
}

}  // namespace
}  // namespace sparsecore::kv_attention
