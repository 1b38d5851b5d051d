// SPDX-License-Identifier: Apache-2.0
// kv_attention loops, compiled once per ISA. A block of up to 64 tokens at a time, for panels of up to 8 queries:
//   scores  a token's K is expanded in registers and multiplied by every query; lanes are summed over 4 to 16 tokens
//           at once
//   softmax one query's 64 scores
//   sums    columns in sweeps, whose sums stay in registers while the block's tokens go by
// Each compressed byte is read once from memory; what a second panel reads again lies in the first cache.
//
// Expanded K and V have the ISA's order of columns within a step, so q is laid out to match and sums are put back in
// order when a split ends.
#pragma once
#include "ops/kv_attention/kv_attention_softmax.h"

// The ISA's file has included, before this header, its cpu/simd/expand_<isa>.h, and defined
//   kSumRegisters  sums that a sweep keeps in registers
namespace sparsecore::kv_attention {
namespace {

constexpr int kWidth = static_cast<int>(Wide::width);
constexpr int64_t kSlack = 64;        // elements that an expansion may read past a token's last
constexpr int64_t kPanelKinds = 6;    // 1, 2, 3, 4, 6, 8 queries
constexpr int64_t kStage = kBlock * 256 + 256 + kSlack;  // elements: a block's values, where the array ends too soon

SPARSECORE_INLINE int64_t panel_kind(int64_t queries) { return queries <= 4 ? queries - 1 : queries <= 6 ? 4 : 5; }
SPARSECORE_INLINE int64_t panel_width(int64_t kind) { return kind < 4 ? kind + 1 : kind == 4 ? 6 : 8; }

// Tokens [begin, end) of a block, in K or V; pointers are of the block's token 0.
struct Run {
  const uint8_t* bits;  // 4 * words a token; of a dense page the same for all tokens
  int64_t bits_step;
  const void* values;
  int64_t keep, head_dim, begin, end;
  const uint8_t* next_bits;  // of the block that comes after it, or of this one
  const char* next_values;

  // Asks for what lies at token t of the next block. A burst of it all at once waits for fill buffers.
  SPARSECORE_INLINE void fetch(int64_t t, int64_t element) const {
    const int64_t bytes = keep * element;
    const char* const p = next_values + t * bytes;
    __builtin_prefetch(next_bits + t * bits_step);
    __builtin_prefetch(p);
    for (int64_t i = 64; i < bytes; i += 64) __builtin_prefetch(p + i);
  }
};

// The next step of columns. A dense page has whole words but for head_dim's last one.
template <class E, bool dense>
SPARSECORE_INLINE const typename E::Element* step(const typename E::Element* p, uint64_t word, int s,
                                                  typename Wide::reg* v) {
  if constexpr (dense) {
    constexpr uint64_t all = E::lanes == 32 ? 0xffffffffu : (uint64_t{1} << E::lanes) - 1;
    if (__builtin_expect((word >> s * E::lanes & all) == all, 1)) {
      E::load(p, v);
      return p + E::lanes;
    }
  }
  return E::expand(p, word, s, v);
}

// s[h * kBlock + t] = q[h] . k[t]; q is [register of the columns][H][lane], lines [16][H][lane] of working space.
// Returns 0 where every token has `keep` bits.
template <class E, int H, bool dense, int W>
SPARSECORE_INLINE int64_t scores_of(const Run run, int64_t words, const float* q, float* lines, float* s) {
  using T = typename E::Element;
  const T* const values = static_cast<const T*>(run.values);
  const int64_t keep = run.keep;
  int64_t faults = 0;
  for (int64_t first = run.begin / kWidth * kWidth; first < run.end; first += kWidth) {
    const int64_t begin = first < run.begin ? run.begin : first,
                  end = first + kWidth < run.end ? first + kWidth : run.end;
    float* line = lines + (begin - first) * H * kWidth;
    for (int64_t t = begin; t < end; ++t, line += H * kWidth) {
      const T* const from = values + t * keep;
      const T* p = from;
      const uint8_t* bits = run.bits + t * run.bits_step;
      run.fetch(t, sizeof(T));
      const float* in = q;
      typename Wide::reg sum[H];
#pragma GCC unroll 8
      for (int h = 0; h < H; ++h) sum[h] = Wide::zero();
      const auto word = [&](int64_t w) {
        const uint64_t here = kv_word(bits, w);
#pragma GCC unroll 4
        for (int i = 0; i < 32 / E::lanes; ++i) {
          typename Wide::reg v[E::parts];
          p = step<E, dense>(p, here, i, v);
#pragma GCC unroll 2
          for (int part = 0; part < E::parts; ++part, in += H * kWidth)
#pragma GCC unroll 8
            for (int h = 0; h < H; ++h) sum[h] = Wide::fma(v[part], Wide::load(in + h * kWidth), sum[h]);
        }
      };
      if constexpr (W > 0) {
#pragma GCC unroll 4
        for (int64_t w = 0; w < W; ++w) word(w);
      } else {
        for (int64_t w = 0; w < words; ++w) word(w);
      }
      faults |= (p - from) ^ keep;
#pragma GCC unroll 8
      for (int h = 0; h < H; ++h) Wide::store(line + h * kWidth, sum[h]);
    }
    for (int h = 0; h < H; ++h) Wide::store(s + h * kBlock + first, Wide::sums(lines + h * kWidth, H * kWidth));
  }
  return faults;
}

template <class E, int H, bool dense>
int64_t scores(const Run& k, const float* q, float* lines, float* s) {
  const int64_t words = kv_words(k.head_dim);
  if constexpr (!dense) {
    if (words == 2) return scores_of<E, H, dense, 2>(k, words, q, lines, s);
    if (words == 4) return scores_of<E, H, dense, 4>(k, words, q, lines, s);
  }
  return scores_of<E, H, dense, 0>(k, words, q, lines, s);
}

// C steps of columns from step `at` on: sum[h] = sum[h] * kept[h] + weight[h][t] * v[t]. offsets[t] goes from the
// token's first value of these columns to its next.
template <class E, int H, int C, bool dense>
SPARSECORE_INLINE void sweep(const Run& v, int64_t at, const float* weights, const float* kept, float* sums,
                             int32_t* offsets) {
  using T = typename E::Element;
  typename Wide::reg sum[C * E::parts][H];
  float* const out = sums + at * E::parts * H * kWidth;
#pragma GCC unroll 8
  for (int c = 0; c < C * E::parts; ++c)
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h)
      sum[c][h] = Wide::fma(Wide::set1(kept[h]), Wide::load(out + (c * H + h) * kWidth), Wide::zero());
  const uint8_t* bits = v.bits + at * E::lanes / 8;
  for (int64_t t = v.begin; t < v.end; ++t) {
    if (at == 0) v.fetch(t, sizeof(T));
    uint64_t word = 0;
    std::memcpy(&word, bits + t * v.bits_step, C * E::lanes / 8);
    const T* const from = static_cast<const T*>(v.values);
    const T* p = from + offsets[t];
#pragma GCC unroll 8
    for (int i = 0; i < C; ++i) {
      typename Wide::reg in[E::parts];
      p = step<E, dense>(p, word, i, in);
#pragma GCC unroll 2
      for (int part = 0; part < E::parts; ++part)
#pragma GCC unroll 8
        for (int h = 0; h < H; ++h)
          sum[i * E::parts + part][h] =
              Wide::fma(in[part], Wide::set1(weights[h * kBlock + t]), sum[i * E::parts + part][h]);
    }
    offsets[t] = static_cast<int32_t>(p - from);
  }
#pragma GCC unroll 8
  for (int c = 0; c < C * E::parts; ++c)
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h) Wide::store(out + (c * H + h) * kWidth, sum[c][h]);
}

// Sums of every column; 0 where every token has `keep` bits.
template <class E, int H, bool dense>
int64_t add_values(const Run& v, const float* weights, const float* kept, float* sums) {
  constexpr int kFit = kSumRegisters / (H * E::parts), kMost = 64 / E::lanes;
  constexpr int C = kFit >= 8 && kMost >= 8 ? 8 : kFit >= 4 && kMost >= 4 ? 4 : kFit >= 2 && kMost >= 2 ? 2 : 1;
  int32_t offsets[kBlock];
  for (int64_t t = v.begin; t < v.end; ++t) offsets[t] = static_cast<int32_t>(t * v.keep);
  const int64_t steps = kv_words(v.head_dim) * 32 / E::lanes;
  int64_t at = 0;
  for (; at + C <= steps; at += C) sweep<E, H, C, dense>(v, at, weights, kept, sums, offsets);
  if constexpr (C * E::lanes > 32)
    if (at < steps) sweep<E, H, 32 / E::lanes, dense>(v, at, weights, kept, sums, offsets);
  int64_t faults = 0;
  for (int64_t t = v.begin; t < v.end; ++t) faults |= offsets[t] ^ (t + 1) * v.keep;
  return faults;
}

using Scores = int64_t (*)(const Run&, const float* q, float* lines, float* s);
using AddValues = int64_t (*)(const Run&, const float* weights, const float* kept, float* sums);
struct Loops {
  Scores scores[2][kPanelKinds];  // [dense][kind]
  AddValues add_values[2][kPanelKinds];
};
template <class E>
constexpr Loops kLoops = {{{scores<E, 1, false>, scores<E, 2, false>, scores<E, 3, false>, scores<E, 4, false>,
                            scores<E, 6, false>, scores<E, 8, false>},
                           {scores<E, 1, true>, scores<E, 2, true>, scores<E, 3, true>, scores<E, 4, true>,
                            scores<E, 6, true>, scores<E, 8, true>}},
                          {{add_values<E, 1, false>, add_values<E, 2, false>, add_values<E, 3, false>,
                            add_values<E, 4, false>, add_values<E, 6, false>, add_values<E, 8, false>},
                           {add_values<E, 1, true>, add_values<E, 2, true>, add_values<E, 3, true>,
                            add_values<E, 4, true>, add_values<E, 6, true>, add_values<E, 8, true>}}};

// Between a row of columns and [register of the columns][lane], registers `apart` floats apart.
template <class E>
void spread(const float* row, int64_t columns, int64_t apart, float* out) {
  for (int64_t c = 0; c < columns; c += E::lanes)
    for (int64_t part = 0; part < E::parts; ++part, out += apart)
      for (int64_t lane = 0; lane < kWidth; ++lane)
        out[lane] = row[c + (E::interleaved ? lane * E::parts + part : part * kWidth + lane)];
}
template <class E>
void gather(const float* in, int64_t columns, int64_t apart, float* row) {
  for (int64_t c = 0; c < columns; c += E::lanes)
    for (int64_t part = 0; part < E::parts; ++part, in += apart)
      for (int64_t lane = 0; lane < kWidth; ++lane)
        row[c + (E::interleaved ? lane * E::parts + part : part * kWidth + lane)] = in[lane];
}

struct Layout {
  const Loops& loops;
  void (*spread)(const float* row, int64_t columns, int64_t apart, float* out);
  void (*gather)(const float* in, int64_t columns, int64_t apart, float* row);
};
SPARSECORE_INLINE Layout layout_of(Dtype d) {
  if (d == Dtype::bf16) return {kLoops<ExpandBf16>, spread<ExpandBf16>, gather<ExpandBf16>};
  if (d == Dtype::f16) return {kLoops<ExpandF16>, spread<ExpandF16>, gather<ExpandF16>};
  return {kLoops<ExpandF32>, spread<ExpandF32>, gather<ExpandF32>};
}

// Working memory of a task, in floats: for each panel q and sums, 8 * 32 * words each; m, l, kept; scores; lines; a
// copy of the last values of an array.
struct Scratch {
  float *q, *sums, *m, *l, *kept, *scores, *lines, *stage;
  int64_t panels, each, panel_floats;
  Scratch(const Args& a, void* memory) {
    const int64_t queries = a.queries();
    panels = (queries + kPanel - 1) / kPanel;
    each = (queries + panels - 1) / panels;  // queries of a panel, but for the last
    panel_floats = kPanel * 32 * kv_words(a.cache.head_dim);
    float* at = static_cast<float*>(memory);
    const auto take = [&](int64_t count) {
      float* const here = at;
      at += (count + 15) / 16 * 16;
      return here;
    };
    q = take(panels * panel_floats);
    sums = take(panels * panel_floats);
    m = take(panels * kPanel);
    l = take(panels * kPanel * kLanes);
    kept = take(kPanel);
    scores = take(kPanel * kBlock);
    lines = take(16 * kPanel * kWidth);
    stage = take(kStage);
    floats = at - static_cast<float*>(memory);
  }
  int64_t floats;
};

int64_t scratch_bytes(const Args& a) { return Scratch(a, nullptr).floats * 4; }

// The values of tokens [begin, end) of a block: where they lie, or a copy where the array ends too soon after them.
SPARSECORE_INLINE const void* readable(const void* values, int64_t element, int64_t keep, int64_t head_dim,
                                       int64_t first, int64_t begin, int64_t end, int64_t total, float* stage) {
  const int64_t from = first + begin * keep, last = first + (end - 1) * keep;
  const char* const base = static_cast<const char*>(values);
  if (last + 32 * kv_words(head_dim) + kSlack <= total) return base + first * element;
  char* const copy = reinterpret_cast<char*>(stage);
  if (keep > 0)
    std::memcpy(copy + begin * keep * element, base + from * element,
                static_cast<size_t>((end - begin) * keep * element));
  return copy;
}

bool run(const Args& a, int64_t number, void* memory) {
  const KvView& c = a.cache;
  const Task task(a, number);
  const int64_t sequence = task.sequence, head = task.head;
  const int64_t queries = a.queries(), d = c.head_dim, words = kv_words(d), columns = 32 * words;
  float* const partial = a.partial + number * queries * a.stride();
  if (task.begin >= task.end) {
    for (int64_t r = 0; r < queries; ++r) partial[r * a.stride()] = -infinity(), partial[r * a.stride() + 1] = 0.0f;
    return true;
  }
  const Layout layout = layout_of(c.value);
  Scratch s(a, memory);
  for (int64_t panel = 0; panel < s.panels; ++panel) {
    const int64_t r0 = panel * s.each, here = queries - r0 < s.each ? queries - r0 : s.each;
    const int64_t width = panel_width(panel_kind(here));
    float* const q = s.q + panel * s.panel_floats;
    float* const sums = s.sums + panel * s.panel_floats;
    for (int64_t i = 0; i < columns * width; ++i) sums[i] = 0.0f;
    for (int64_t h = 0; h < width; ++h) {
      alignas(64) float row[256] = {};
      if (h < here) {
        const int64_t first = a.row(sequence, head, r0 + h) * d;
        const float scale = a.scale * kLog2e;
        if (a.query == Dtype::f32)
          for (int64_t i = 0; i < d; ++i) row[i] = static_cast<const float*>(a.q)[first + i] * scale;
        else
          for (int64_t i = 0; i < d; ++i) row[i] = load_f32(a.q, a.query, first + i) * scale;
      }
      layout.spread(row, columns, width * kWidth, q + h * kWidth);
      s.m[panel * kPanel + h] = -infinity();
      for (int64_t i = 0; i < kLanes; ++i) s.l[(panel * kPanel + h) * kLanes + i] = 0.0f;
    }
  }
  alignas(64) uint8_t live[32];  // bits of a dense token
  std::memset(live, 0xff, sizeof(live));
  if (d % 32 != 0) {
    const uint32_t last = ~kv_padding(d);
    std::memcpy(live + 4 * (words - 1), &last, 4);
  }
  const int64_t element = dtype_bytes(c.value);
  int64_t faults = 0;
  const auto row_of = [&](int64_t entry) { return ((entry < 0 ? -2 - entry : entry) * c.kv_heads + head) * c.page; };
  for (int64_t i = task.begin; i < task.end; ++i) {
    const Stretch page = stretch(a, task, i);
    if (page.begin == page.end) continue;
    const int32_t* const table = c.page_table + sequence * c.columns;
    const int64_t entry = table[page.column], first = page.column * c.page, rows = row_of(entry);
    if (!kv_is_entry(c, entry)) return false;
    const bool dense = entry < 0;
    int64_t following = -1;  // where the next page begins, if it is of the same pool
    if (i + 1 < task.end) {
      const Stretch then = stretch(a, task, i + 1);
      const int64_t other = then.begin < then.end ? table[then.column] : kKvNoPage;
      if (dense == (other < 0) && kv_is_entry(c, other)) following = row_of(other);
    }
    for (int64_t block = first + (page.begin - first) / kBlock * kBlock; block < page.end; block += kBlock) {
      const int64_t begin = page.begin > block ? page.begin - block : 0;
      const int64_t end = page.end - block < kBlock ? page.end - block : kBlock;
      const int64_t token = rows + block - first;
      const int64_t after = block + kBlock < page.end ? token + kBlock : following >= 0 ? following : token;
      const auto run_of = [&](const KvPool& pool) {
        const int64_t keep = dense ? d : pool.keep, tokens = (dense ? c.dense_pages : c.pages) * c.kv_heads * c.page;
        const void* const values = dense ? pool.dense : pool.values;
        return Run{dense ? live : pool.bitmask + token * 4 * words,
                   dense ? 0 : 4 * words,
                   readable(values, element, keep, d, token * keep, begin, end, tokens * keep, s.stage),
                   keep,
                   d,
                   begin,
                   end,
                   dense ? live : pool.bitmask + after * 4 * words,
                   static_cast<const char*>(values) + after * keep * element};
      };
      bool v_read = false;
      for (int64_t panel = 0; panel < s.panels; ++panel) {
        const int64_t r0 = panel * s.each, here = queries - r0 < s.each ? queries - r0 : s.each;
        const int64_t kind = panel_kind(here), width = panel_width(kind);
        faults |= layout.loops.scores[dense][kind](run_of(c.k), s.q + panel * s.panel_floats, s.lines, s.scores);
        bool all_drop = true;
        for (int64_t h = 0; h < width; ++h) {
          float* const row = s.scores + h * kBlock;
          const int64_t at = panel * kPanel + h;
          Query query{};
          if (h < here) {
            query = query_of(a, sequence, head, r0 + h);
            see(a, query, block, begin, end);
          }
          bool dropped;
          s.kept[h] = softmax(a, query, block, row, s.m[at], s.l + at * kLanes, dropped);
          all_drop &= dropped || h >= here;
        }
        if (all_drop) continue;
        v_read = true;
        faults |= layout.loops.add_values[dense][kind](run_of(c.v), s.scores, s.kept, s.sums + panel * s.panel_floats);
      }
      if (!dense && kv_padding(d) != 0)
        for (int64_t t = begin; t < end; ++t) {
          uint32_t last = kv_word(c.k.bitmask + (token + t) * 4 * words, words - 1);
          if (v_read) last |= kv_word(c.v.bitmask + (token + t) * 4 * words, words - 1);
          faults |= last & kv_padding(d);
        }
    }
  }
  for (int64_t panel = 0; panel < s.panels; ++panel) {
    const int64_t r0 = panel * s.each, here = queries - r0 < s.each ? queries - r0 : s.each;
    const int64_t width = panel_width(panel_kind(here));
    for (int64_t h = 0; h < here; ++h) {
      float* const out = partial + (r0 + h) * a.stride();
      out[0] = s.m[panel * kPanel + h];
      out[1] = total(s.l + (panel * kPanel + h) * kLanes);
      alignas(64) float row[256];
      layout.gather(s.sums + panel * s.panel_floats + h * kWidth, columns, width * kWidth, row);
      std::memcpy(out + 2, row, static_cast<size_t>(d) * 4);
    }
  }
  return faults == 0;
}

}  // namespace
}  // namespace sparsecore::kv_attention
