// SPDX-License-Identifier: Apache-2.0
// kv_attention in plain loops: one query at a time, a block's scores, then their softmax, then the sums.
#include "ops/kv_attention/kv_attention_softmax.h"

namespace sparsecore::kv_attention {
namespace {

// The token at a position: where it lies in its pool, or -1.
struct Place {
  int64_t token;
  bool dense;
};
SPARSECORE_INLINE Place place(const Args& a, int64_t sequence, int64_t head, int64_t position) {
  const KvView& c = a.cache;
  const int64_t entry = c.page_table[sequence * c.columns + position / c.page];
  if (!kv_is_entry(c, entry)) return {-1, false};
  const int64_t page = entry < 0 ? -2 - entry : entry;
  return {(page * c.kv_heads + head) * c.page + position % c.page, entry < 0};
}

// fn(channel, value) for what a token stores; false: its bits are not `keep` channels.
template <class Fn>
SPARSECORE_INLINE bool each(const KvView& c, const KvPool& pool, const Place& at, const Fn& fn) {
  const int64_t d = c.head_dim;
  if (at.dense) {
    for (int64_t i = 0; i < d; ++i) fn(i, load_f32(pool.dense, c.value, at.token * d + i));
    return true;
  }
  const uint8_t* const bits = pool.bitmask + at.token * 4 * kv_words(d);
  if (kv_population(bits, d) != pool.keep) return false;
  int64_t p = at.token * pool.keep;
  for (int64_t i = 0; i < d; ++i)
    if (bits[i / 8] >> i % 8 & 1) fn(i, load_f32(pool.values, c.value, p++));
  return true;
}

int64_t scratch_bytes(const Args&) { return kBlock * 4; }

bool run(const Args& a, int64_t number, void* memory) {
  const KvView& c = a.cache;
  const Task task(a, number);
  const int64_t sequence = task.sequence, head = task.head, d = c.head_dim;
  float* const scores = static_cast<float*>(memory);
  for (int64_t r = 0; r < a.queries(); ++r) {
    float* const out = a.partial + (number * a.queries() + r) * a.stride();
    for (int64_t i = 0; i < a.stride(); ++i) out[i] = 0.0f;
    float m = -infinity();
    alignas(64) float l[kLanes] = {};
    const int64_t row = a.row(sequence, head, r) * d;
    // Not inline: compiles in a third of the time.
    const auto attend = [&](int64_t block, int64_t begin, int64_t end) __attribute__((noinline)) {
      for (int64_t t = begin; t < end; ++t) {
        const Place at = place(a, sequence, head, t);
        float sum = 0.0f;
        const auto add = [&](int64_t i, float k) { sum += k * (load_f32(a.q, a.query, row + i) * (a.scale * kLog2e)); };
        if (at.token < 0 || !each(c, c.k, at, add)) return false;
        scores[t - block] = sum;
      }
      Query query = query_of(a, sequence, head, r);
      see(a, query, block, begin - block, end - block);
      bool dropped;
      const float kept = softmax(a, query, block, scores, m, l, dropped);
      if (dropped) return true;
      for (int64_t i = 0; i < d; ++i) out[2 + i] *= kept;
      for (int64_t t = begin; t < end; ++t) {
        const float weight = scores[t - block];
        const auto add = [&](int64_t i, float v) { out[2 + i] += v * weight; };
        if (!each(c, c.v, place(a, sequence, head, t), add)) return false;
      }
      return true;
    };
    for (int64_t i = task.begin; i < task.end; ++i) {
      const Stretch s = stretch(a, task, i);
      if (s.begin == s.end) continue;
      const int64_t first = s.column * c.page;
      for (int64_t block = first + (s.begin - first) / kBlock * kBlock; block < s.end; block += kBlock)
        if (!attend(block, s.begin > block ? s.begin : block, s.end < block + kBlock ? s.end : block + kBlock))
          return false;
    }
    out[0] = m;
    out[1] = total(l);
  }
  return true;
}

}  // namespace

extern const Kernel kernel_scalar;
const Kernel kernel_scalar = {"kv_attention_scalar", cpu::Isa::scalar, scratch_bytes, run, merge};

}  // namespace sparsecore::kv_attention
