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
  s.values[0] = static_cast<int>(2 * mask);
  s.values[1] = static_cast<int>(2 * mask + kUnit * 2 * k);
  return s;
}
// Field by field, so that none lies in memory.
SPARSECORE_DEVICE Stage one_of(bool second, const Stage& a, const Stage& b) {
  return {{second ? b.row[0] : a.row[0], second ? b.row[1] : a.row[1]},
          {second ? b.values[0] : a.values[0], second ? b.values[1] : a.values[1]}};
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
  const int chunks = 2 * elements;  // of 16 bytes
  const char* source = static_cast<const char*>(from) + 16 * lane_index();
  if (row == elements) {
    to += 16 * lane_index();
#pragma unroll 1
    for (int i = lane_index(); i < chunks; i += kLanes, to += 16 * kLanes, source += 16 * kLanes)
      async_copy<16>(to, source);
  } else {
    const int pad = 2 * (row - elements), per = elements / 8;
    const int inverse = (65535 + per) / per;  // i / per = i * inverse >> 16, as i < 512
#pragma unroll 1
    for (int i = lane_index(); i < chunks; i += kLanes, source += 16 * kLanes)
      async_copy<16>(to + 16 * i + (i * inverse >> 16) * pad, source);
  }
}

// Starts the copies of a unit's values: half 0 is K's, 1 V's.
SPARSECORE_DEVICE void fetch_values(const KvView& c, const Place& at, const Stage& s, char* stage, int half) {
  const KvPool& pool = half == 0 ? c.k : c.v;
  const int elements = static_cast<int>(at.dense ? c.head_dim : pool.keep);
  const char* const from = static_cast<const char*>(at.dense ? pool.dense : pool.values);
  copy_rows(stage + s.values[half], from + at.row * elements * 2, elements, s.row[half]);
}

// Starts the copies of a unit, of its bits and of the values of as many halves.
SPARSECORE_DEVICE void fetch(const KvView& c, const Place& at, const Stage& s, char* stage, int halves) {
  if (at.position < 0) return;
  if (!at.dense) {
    const int words = static_cast<int>(kv_words(c.head_dim)), chunks = 4 * words;
    const int64_t bytes = at.row * words * 4;
#pragma unroll 1
    for (int i = lane_index(); i < 2 * chunks; i += kLanes) {
      const uint8_t* const from = i < chunks ? c.k.bitmask : c.v.bitmask - 16 * chunks;
      async_copy<16>(stage + 16 * i, from + bytes + 16 * i);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half)
    if (half < halves) fetch_values(c, at, s, stage, half);
}

// A lane's channels of a token: bits, lowest first, and the values that they stand for.
struct Walk {
  uint32_t low, high;
  ptx::SharedAddress next;

  // 16 bits of channel `bit` below 32; channels are asked for in order.
  SPARSECORE_DEVICE uint32_t take(int bit) { return ptx::take_shared(low & (1u << bit), next); }
};
SPARSECORE_DEVICE uint32_t pair_of(uint32_t low, uint32_t high) { return __byte_perm(low, high, 0x5410); }

// The lowest `count` bits, at most 32.
SPARSECORE_DEVICE uint32_t low_bits(int count) { return count < 32 ? (1u << count) - 1 : ~0u; }

// Where a lane's `count` bits of a token's words lie, at most 64 of them, and how to cut them out.
struct Cut {
  int word, shift, total;
  uint32_t low, high;  // masks
  bool aligned;  // count is a power of 2

  SPARSECORE_DEVICE Cut(int words, int count, int from) {
    word = from / 32;
    shift = from % 32;
    total = words;
    low = low_bits(count < 32 ? count : 32);
    high = count <= 32 ? 0 : low_bits(count - 32);
    aligned = (count & (count - 1)) == 0;
  }
  SPARSECORE_DEVICE void operator()(const uint32_t* words, Walk& walk) const {
    const uint32_t first = words[word];
    if (aligned) {  // so bits cross no word, or are two
      walk.low = first >> shift & low;
      walk.high = high != 0 ? words[word + 1] : 0;
    } else {
      const uint64_t second = word + 1 < total ? words[word + 1] : 0, third = word + 2 < total ? words[word + 2] : 0;
      walk.low = static_cast<uint32_t>((first | second << 32) >> shift) & low;
      walk.high = static_cast<uint32_t>((second | third << 32) >> shift) & high;
    }
  }
};

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

// Leaves the warp's lines once the block has met (block_sync); false where a page or bits are none. Tiles: of 16
// channels, at least so many as head_dim has.
template <class Mma, int Tiles>
SPARSECORE_DEVICE bool mma_warp(const Args& a, const Item& item, const uint2* q, char* stages, int64_t apart,
                                float* lines) {
  const KvView& c = a.cache;
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  const int d = static_cast<int>(c.head_dim), words = static_cast<int>(kv_words(d)), steps = (d + 15) / 16;
  const Query query[2] = {Query(a, item, 2 * t), Query(a, item, 2 * t + 1)};
  FragmentC<float> sums[Tiles];
#pragma unroll
  for (int j = 0; j < Tiles; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[j].c[i] = 0.0f;
  float m[2] = {minus_infinity(), minus_infinity()}, l[2] = {0.0f, 0.0f}, shift[2] = {0.0f, 0.0f};
  bool good = true;
  const Cut k_cut(words, d / 4, t * (d / 4)), v_cut(words, d / 8, g * (d / 8));
  const Stage packed = stage_of(c, false), dense = stage_of(c, true);
  const unsigned padding = kv_padding(d);
  const bool simple = a.softcap <= 0.0f && !a.bias && !a.slopes;
  const int first_position = static_cast<int>(item.length - a.q_tokens);  // of any query

  constexpr int kStep = kWarps * kUnit;
  const int halves = a.drop < 0.0f ? 1 : 2;  // V comes when a unit is not dropped
  int ahead = item.begin + warp_index() * kUnit;  // the walk's unit after this one
  Column column(c, ahead);
  Look look{kNothing, 0};  // of that unit, asked for in time
  if (ahead < item.end) look = column.look(a, item, kUnit);
  Place at{0, kNothing, false}, next = at;
  for (int turn = 0; ahead < item.end + kStep; ahead += kStep, turn ^= 1, at = next) {
    good = at.position != kBroken;
    if (!good) break;  // the whole warp
    next.position = kNothing;
    if (ahead < item.end) {
      next = column.place(c, item, look);
      fetch(c, next, one_of(next.dense, packed, dense), stages + turn * apart, halves);
      column.advance(kStep);
      if (ahead + kStep < item.end) look = column.look(a, item, kUnit);
    }
    async_commit();
    if (at.position == kNothing) continue;
    const int first = at.position;
    async_wait<1>();
    warp_sync();
    char* const stage = stages + (turn ^ 1) * apart;
    const Stage s = one_of(at.dense, packed, dense);
    const int keep_k = at.dense ? d : static_cast<int>(c.k.keep), keep_v = at.dense ? d : static_cast<int>(c.v.keep);

    // Where the lane's channels begin: those of K in tokens g, g + 8; of V in 2 t, 2 t + 1, 2 t + 8, 2 t + 9. Counts are
    // 16 bits each in a register.
    const int from = item.seen - first, to = item.length - first;  // of the unit's tokens those that count
    const bool whole = from <= 0 && to >= kUnit;
    const auto inside = [&](int token) { return token >= from && token < to; };
    const uint32_t* const k_bits = reinterpret_cast<const uint32_t*>(stage);
    const uint32_t* const v_bits = k_bits + kUnit * words;
    Walk k[2], v[4];
    int count[3], sum[3];  // of k, v[0] and v[1], v[2] and v[3]
    bool bad = false;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = g + 8 * i;
      if (at.dense) {
        k[i].low = k_cut.low;
        k[i].high = k_cut.high;
      } else {
        k_cut(k_bits + token * words, k[i]);
        if (padding != 0) {
          const int last = token * words + words - 1;
          bad |= inside(token) && ((k_bits[last] | v_bits[last]) & padding) != 0;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = 2 * t + i % 2 + i / 2 * 8;
      if (at.dense) v[i].low = v_cut.low;
      else v_cut(v_bits + token * words, v[i]);
    }
    // Tokens outside have no values, and their counts are not looked at.
    uint32_t k_looked = ~0u, v_looked[2] = {~0u, ~0u};
    if (!whole) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (!inside(g + 8 * i)) {
          k[i].low = k[i].high = 0;
          k_looked &= ~(0xffffu << 16 * i);
        }
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (!inside(2 * t + i % 2 + i / 2 * 8)) {
          v[i].low = 0;
          v_looked[i / 2] &= ~(0xffffu << 16 * (i % 2));
        }
    }
    count[0] = (__popc(k[0].low) + __popc(k[0].high)) | (__popc(k[1].low) + __popc(k[1].high)) << 16;
    count[1] = __popc(v[0].low) | __popc(v[1].low) << 16;
    count[2] = __popc(v[2].low) | __popc(v[3].low) << 16;
#pragma unroll
    for (int i = 0; i < 3; ++i) sum[i] = count[i];
#pragma unroll
    for (int step = 1; step < 8; step *= 2)
#pragma unroll
      for (int i = step < 4 ? 0 : 1; i < 3; ++i) {
        const int below = warp_before(sum[i], i == 0 ? step : 4 * step);
        if ((i == 0 ? t : g) >= step) sum[i] += below;
      }
    bad |= ((warp_shuffle(sum[0], lane | 3) ^ keep_k * 0x10001) & k_looked) != 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      bad |= ((warp_shuffle(sum[1 + i], 28 + t) ^ keep_v * 0x10001) & v_looked[i]) != 0;
      const int before = (sum[0] - count[0]) >> 16 * i & 0xffff;
      k[i].next = ptx::shared_address(stage + s.values[0]) + 2 * ((g + 8 * i) * s.row[0] + before);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = 2 * t + i % 2 + i / 2 * 8;
      const int before = (sum[1 + i / 2] - count[1 + i / 2]) >> 16 * (i % 2) & 0xffff;
      v[i].next = ptx::shared_address(stage + s.values[1]) + 2 * (token * s.row[1] + before);
    }
    if (warp_any(bad)) {
      good = false;
      break;
    }

    FragmentC<float> scores{{0.0f, 0.0f, 0.0f, 0.0f}};
    for (int eight = 0; eight < steps; eight += 8) {
#pragma unroll
      for (int step = 0; step < 8; ++step) {
        if (eight + step >= steps) break;
        FragmentA<2> tokens;
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int pair = 0; pair < 2; ++pair) {
            const uint32_t low = k[i].take(4 * step + 2 * pair);
            tokens.r[2 * pair + i] = pair_of(low, k[i].take(4 * step + 2 * pair + 1));
          }
        const uint2 pairs = q[(eight + step) * kLanes + lane];
        mma<Mma>(scores, tokens, {{pairs.x, pairs.y}});
      }
      k[0].low = k[0].high;
      k[1].low = k[1].high;
    }

    // Weights: numbers 0, 1 of a fragment of C are token g's for the lane's two queries, 2, 3 token g + 8's.
    float w[4];
    const bool all_seen =
        whole && first + kUnit - 1 <= first_position && (item.window == 0 || first > item.length - 1 - item.window);
    if (simple && all_seen) {  // queries past the panel's get weights too, which nobody reads
#pragma unroll
      for (int i = 0; i < 4; ++i) w[i] = scores.c[i] * (a.scale * kLog2e);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) w[i] = score(a, item, query[i % 2], scores.c[i], first + g + i / 2 * 8);
    }
    if (a.drop < 0.0f) {
      bool needed = false;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float limit = m[i] + a.drop;  // NaN is not dropped
        const bool high = query[i].live && !(w[i] < limit && w[i + 2] < limit);
        const bool here = (warp_ballot(high) & 0x11111111u << t) != 0;
        if (!here) w[i] = w[i + 2] = minus_infinity();
        needed |= here;
      }
      if (!warp_any(needed)) {
        warp_sync();
        continue;
      }
      const Column here(c, first);  // by position, so that a row need not stay in registers
      const Look entry{first, c.page_table[item.sequence * c.columns + here.number]};
      fetch_values(c, here.place(c, item, entry), s, stage, 1);
      async_commit();
      async_wait<0>();
      warp_sync();
    }
    if (warp_any(w[0] > m[0] || w[2] > m[0] || w[1] > m[1] || w[3] > m[1])) {  // rarely, but in the first units
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float top = w[i] > w[i + 2] ? w[i] : w[i + 2];
#pragma unroll
        for (int step = 4; step < kLanes; step *= 2) {
          const float other = warp_exchange(top, step);
          top = other > top ? other : top;
        }
        const float kept = raise_maximum(m[i], top > m[i] ? top : m[i], shift[i]);
        l[i] *= kept;
#pragma unroll
        for (int j = 0; j < Tiles; ++j) {
          sums[j].c[i] *= kept;
          sums[j].c[2 + i] *= kept;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w[i] = exp2f(w[i] - shift[i % 2]);
      l[i % 2] += w[i];
    }
    FragmentB<2, 2> weights, rest;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Halves one = Weights<Mma>::of(w[2 * i]), other = Weights<Mma>::of(w[2 * i + 1]);
      weights.r[i] = ptx::movmatrix(one.high | other.high << 16);
      rest.r[i] = ptx::movmatrix(one.low | other.low << 16);
    }
#pragma unroll
    for (int j = 0; j < Tiles; ++j) {
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
    for (int j = 0; j < Tiles; ++j) {
      if (2 * j < count) line[2 + g * count + 2 * j] = sums[j].c[i] * kOver;
      if (2 * j + 1 < count) line[2 + g * count + 2 * j + 1] = sums[j].c[2 + i] * kOver;
    }
  }
  return good;
}

}  // namespace
}  // namespace sparsecore::kv_attention
