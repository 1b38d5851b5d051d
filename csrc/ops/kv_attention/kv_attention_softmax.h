// SPDX-License-Identifier: Apache-2.0
// What kernels of kv_attention share: the softmax of a block of scores, and the merge of splits, in 16 lanes on every
// ISA, so that all sum in the same order.
//
// Scores are in powers of 2: q comes times scale / ln 2, so that exp is exp2.
#pragma once
#include "ops/kv_attention/kv_attention.h"

namespace sparsecore::kv_attention {
namespace {

constexpr float kLog2e = 0x1.715476p0f, kLn2 = 0x1.62e43p-1f;
constexpr int64_t kBlock = 64;  // most tokens between two looks at the maximum
constexpr int64_t kLanes = 16;

// Vectors of the compiler's: one register on AVX-512, four on NEON. Never passed by value, which has no one ABI.
using Lanes = float __attribute__((vector_size(64)));
using LanesI = int32_t __attribute__((vector_size(64)));

SPARSECORE_INLINE void load(Lanes& v, const float* from) { std::memcpy(&v, from, sizeof(v)); }
SPARSECORE_INLINE void store(const Lanes& v, float* to) { std::memcpy(to, &v, sizeof(v)); }

// x to 2^x within 1.5 ulp for x >= -126, 0 from -127 down; NaN stays. Taylor to the 7th power of |f| <= 1/2: 6e-9.
SPARSECORE_INLINE void power_of_2(Lanes& x) {
  x = x < -127.0f ? Lanes{} - 127.0f : x;
  x = x > 127.0f ? Lanes{} + 127.0f : x;
  const Lanes shifted = x + 0x1.8p23f, f = x - (shifted - 0x1.8p23f);
  Lanes p = 1.52527338e-5f * f + 1.54035304e-4f;
  p = p * f + 1.33335581e-3f;
  p = p * f + 9.61812911e-3f;
  p = p * f + 5.55041087e-2f;
  p = p * f + 2.40226507e-1f;
  p = p * f + 6.93147181e-1f;
  p = p * f + 1.0f;
  const LanesI scale = (reinterpret_cast<LanesI>(shifted) + 127) << 23;
  x = p * reinterpret_cast<Lanes>(scale);
}
SPARSECORE_INLINE float power_of_2(float x) {
  Lanes v = Lanes{} + x;
  power_of_2(v);
  return v[0];
}

// The largest lane in every lane.
SPARSECORE_INLINE void largest(Lanes& v) {
  const auto fold = [&](const Lanes& other) { v = other > v ? other : v; };
  fold(__builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  fold(__builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  fold(__builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  fold(__builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
}

SPARSECORE_INLINE float infinity() { return bits_to_f32(0x7f800000u); }

// A query's view of a block of tokens that begins at position `first`.
struct Query {
  int64_t position;
  int64_t begin, end;  // of the block's tokens: those that it sees
  const float* bias;   // of position 0, or null
  int64_t bias_stride;
  float slope;
};

SPARSECORE_INLINE Query query_of(const Args& a, int64_t sequence, int64_t kv_head, int64_t r) {
  const int64_t token = r / a.group(), head = kv_head * a.group() + r % a.group();
  Query q{};
  q.position = a.cache.lengths[sequence] - a.q_tokens + token;
  if (a.bias) q.bias = a.bias + sequence * a.bias_strides[0] + head * a.bias_strides[1] + token * a.bias_strides[2];
  q.bias_stride = a.bias_strides[3];
  q.slope = a.slopes ? a.slopes[head] : 0.0f;
  return q;
}

SPARSECORE_INLINE void see(const Args& a, Query& q, int64_t first, int64_t begin, int64_t end) {
  const int64_t last = q.position - first + 1, seen = a.window > 0 ? last - a.window : 0;
  q.begin = begin > seen ? begin : seen;
  q.end = end < last ? end : last;
}

// s to bound * tanh(s / bound), whose error is a few ulp of the bound.
SPARSECORE_INLINE void cap(Lanes& s, float bound) {
  s *= 2.0f * kLog2e / bound;
  s = s < -60.0f ? Lanes{} - 60.0f : s;
  s = s > 60.0f ? Lanes{} + 60.0f : s;
  power_of_2(s);
  s = bound - 2.0f * bound / (s + 1.0f);
}

// Turns scores s[0..kBlock) into weights 2^(s - m), 0 outside [q.begin, q.end), with the running maximum m and the
// running sums l[0..kLanes), which are added at the end. Returns what earlier sums are to be multiplied by, and whether
// the block is dropped: its weights are 0.
inline float softmax(const Args& a, const Query& q, int64_t first, float* s, float& m, float* l, bool& dropped) {
  constexpr LanesI kIota = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  constexpr int kRegisters = static_cast<int>(kBlock / kLanes);
  Lanes v[kRegisters], top = Lanes{} + m;
#pragma GCC unroll 4
  for (int i = 0; i < kRegisters; ++i) {
    const int32_t t = static_cast<int32_t>(kLanes) * i;
    load(v[i], s + t);
    if (a.softcap > 0.0f) cap(v[i], a.softcap * kLog2e);
    if (q.slope != 0.0f)
      v[i] -= q.slope * kLog2e * __builtin_convertvector(static_cast<int32_t>(q.position - first) - t - kIota, Lanes);
    if (q.bias) {
      Lanes bias{};
      for (int64_t j = 0; j < kLanes; ++j)
        if (t + j >= q.begin && t + j < q.end) bias[j] = q.bias[(first + t + j) * q.bias_stride];
      v[i] += bias * kLog2e;
    }
    if (q.begin > t || q.end < t + kLanes)
      v[i] = (kIota >= static_cast<int32_t>(q.begin) - t) & (kIota < static_cast<int32_t>(q.end) - t)
                 ? v[i]
                 : Lanes{} - infinity();
    top = v[i] > top ? v[i] : top;
  }
  dropped = false;
  if (a.drop < 0.0f) {
    const float limit = m + a.drop;
    Lanes high{};  // 1 where a score is not lower, NaN among them
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) high = v[i] < limit ? high : Lanes{} + 1.0f;
    largest(high);
    if (high[0] == 0.0f) {
      dropped = true;
      std::memset(s, 0, kBlock * sizeof(float));
      return 1.0f;
    }
  }
  largest(top);
  const Lanes shift = top == -infinity() ? Lanes{} : top;
  Lanes kept = m - shift, sum;
  power_of_2(kept);
  load(sum, l);
  sum *= kept;
#pragma GCC unroll 4
  for (int i = 0; i < kRegisters; ++i) {
    v[i] -= shift;
    power_of_2(v[i]);
    sum += v[i];
    store(v[i], s + kLanes * i);
  }
  store(sum, l);
  m = top[0];
  return kept[0];
}

SPARSECORE_INLINE float total(const float* l) {
  float sum = 0.0f;
  for (int64_t i = 0; i < kLanes; ++i) sum += l[i];
  return sum;
}

// Adds the splits of one sequence and KV head.
inline void merge(const Args& a, int64_t head) {
  const int64_t sequence = head / a.cache.kv_heads, kv_head = head % a.cache.kv_heads, d = a.cache.head_dim;
  const int64_t queries = a.queries(), step = queries * a.stride();
  for (int64_t r = 0; r < queries; ++r) {
    const float* const part = a.partial + head * a.splits * step + r * a.stride();
    float m = -infinity(), l = 0.0f;
    for (int64_t i = 0; i < a.splits; ++i) m = part[i * step] > m ? part[i * step] : m;
    const float shift = m == -infinity() ? 0.0f : m;
    alignas(64) float sum[256];
    for (int64_t c = 0; c < d; ++c) sum[c] = 0.0f;
    for (int64_t i = 0; i < a.splits; ++i) {
      const float* const p = part + i * step;
      if (p[1] == 0.0f) continue;  // nothing seen
      const float w = power_of_2(p[0] - shift);
      l += w * p[1];
      for (int64_t c = 0; c < d; ++c) sum[c] += w * p[2 + c];
    }
    const int64_t row = a.row(sequence, kv_head, r);
    const float over = l == 0.0f ? 0.0f : 1.0f / l;
    for (int64_t c = 0; c < d; ++c) store_f32(a.out, a.query, row * d + c, sum[c] * over);
    a.lse[row] = l == 0.0f ? -infinity() : (m + __builtin_log2f(l)) * kLn2;
  }
}

}  // namespace
}  // namespace sparsecore::kv_attention
