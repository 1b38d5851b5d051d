// SPDX-License-Identifier: Apache-2.0
// Kv: keys and values of past tokens in pages, each page compressed or dense.
//
//   page_table  int32 [batch, columns]   entry j of a sequence holds its tokens [j * page, (j + 1) * page)
//                 e >= 0      page e of the compressed pool
//                 e == -1     no page
//                 e <= -2     page -2 - e of the dense pool
//   lengths     int32 [batch]            tokens of a sequence; entries past them are not read
//
//   sequence 0:  [ -2 | 7 | 0 | 3 | -4 | -1 | ...]   the first tokens and the latest ones dense, the rest compressed
//   sequence 1:  [ -3 | 7 | -5| -1 | ...]            pages may lie in any order and be shared
//
// A token of a compressed page keeps exactly `keep` of its head_dim channels for each KV head, so that every token has
// the same bytes and no offsets are stored. K and V are pools of the same shapes, with a keep of their own:
//
//   bitmask  uint8 [pages, kv_heads, page, 4 * words]   words = ceil(head_dim / 32); bit j (least significant first) of
//                                                       byte b is channel 8b + j
//   values   [pages, kv_heads, page, keep]              the set channels of a token in rising order
//   dense    [dense_pages, kv_heads, page, head_dim]    of the same dtype: float32, bfloat16, float16
//
//          channel 0 1 2 3 4 5 6 7 ...
//   token 0       [a . . b . . . .   ]   bitmask 0b00001001 ...   values a b ...
//   token 1       [. c . . . d . .   ]   bitmask 0b00100010 ...          c d ...
//
// Sizes: head_dim 32 to 256 in steps of 8; page 16 to 1024 in steps of 16, so that the values of a page and head begin
// at a multiple of 16 bytes whatever keep is, and a warp can fetch them whole, in order. 0 <= keep <= head_dim.
//
// Bytes of a compressed token over 16-bit dense, page table counted (4 / page bytes a token and its heads):
//   (2 keep + 4 words) / (2 head_dim)      head_dim 64     head_dim 128     any other, at most
//   keep = ceil(0.3 head_dim)              0.375           0.367            0.40 (40)
//   keep = head_dim / 2                    0.5625          0.5625           0.60 (40)
// The entropy bound at 70 % is 0.355.
//
// Invariants: popcount of a token's bits = keep; bits of channels >= head_dim are 0. Slots of a page past the sequence's
// length are not read. A stored value may be 0. Values have no padding: a reader must not load past the array.
//
// The arrays are untrusted. A token's values may be read once its bits have been counted, or where head_dim elements
// from its first one lie within the array, as a token has at most head_dim bits below the padding.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/dtype.h"

namespace sparsecore {

constexpr int32_t kKvNoPage = -1;
constexpr int64_t kv_words(int64_t head_dim) { return (head_dim + 31) / 32; }
constexpr bool kv_is_head_dim(int64_t d) { return d >= 32 && d <= 256 && d % 8 == 0; }
constexpr bool kv_is_page(int64_t tokens) { return tokens >= 16 && tokens <= 1024 && tokens % 16 == 0; }

// The compressed and the dense pages of K, or of V.
struct KvPool {
  const uint8_t* bitmask;  // [pages, kv_heads, page, 4 * words]
  const void* values;  // [pages, kv_heads, page, keep]
  const void* dense;  // [dense_pages, kv_heads, page, head_dim]
  int64_t keep;
};

struct KvView {
  int64_t batch, kv_heads, head_dim, page;  // page: tokens of one
  int64_t columns;  // of page_table
  int64_t pages, dense_pages;
  KvPool k, v;
  const int32_t* page_table;
  const int32_t* lengths;
  Dtype value;  // f32, bf16, f16
};

SPARSECORE_INLINE uint32_t kv_word(const uint8_t* bits, int64_t word) {
  uint32_t w;
  std::memcpy(&w, bits + 4 * word, 4);
  return w;
}

// Bits of the last word that are of no channel.
SPARSECORE_INLINE uint32_t kv_padding(int64_t head_dim) { return head_dim % 32 == 0 ? 0 : ~0u << head_dim % 32; }

// The bits of infinity: what is pruned by magnitude is compared as bits without the sign, and NaN is above it.
constexpr uint32_t kv_infinity(Dtype d) { return d == Dtype::bf16 ? 0x7f80 : d == Dtype::f16 ? 0x7c00 : 0x7f800000u; }

enum class KvFault : int32_t { none, length, no_page, page, k_population, v_population };

struct KvFinding {
  KvFault fault = KvFault::none;
  int64_t sequence = 0, token = 0;
  int64_t value = 0;  // the offending length, entry or population (head_dim + 1: bits of no channel)
};

// Population of a token, or head_dim + 1 where padding is set.
SPARSECORE_INLINE int64_t kv_population(const uint8_t* bits, int64_t head_dim) {
  int64_t count = 0;
  const int64_t words = kv_words(head_dim);
  for (int64_t i = 0; i < words; ++i) count += __builtin_popcount(kv_word(bits, i));
  return (kv_word(bits, words - 1) & kv_padding(head_dim)) != 0 ? head_dim + 1 : count;
}

SPARSECORE_INLINE bool kv_length_fits(const KvView& c, int64_t sequence) {
  return c.lengths[sequence] >= 0 && c.lengths[sequence] <= c.columns * c.page;
}

SPARSECORE_INLINE bool kv_is_entry(const KvView& c, int64_t entry) {
  return entry != kKvNoPage && entry < c.pages && -2 - entry < c.dense_pages;
}

// What is wrong with tokens [token, token + live) of one page, for one head.
SPARSECORE_INLINE KvFinding kv_check_page(const KvView& c, int64_t sequence, int64_t head, int64_t token,
                                          int64_t live) {
  const int64_t entry = c.page_table[sequence * c.columns + token / c.page];
  if (entry == kKvNoPage) return {KvFault::no_page, sequence, token, entry};
  if (!kv_is_entry(c, entry)) return {KvFault::page, sequence, token, entry};
  if (entry < 0) return {};
  const int64_t first = (entry * c.kv_heads + head) * c.page + token % c.page, bytes = 4 * kv_words(c.head_dim);
  for (int64_t t = 0; t < live; ++t) {
    const int64_t k = kv_population(c.k.bitmask + (first + t) * bytes, c.head_dim);
    if (k != c.k.keep) return {KvFault::k_population, sequence, token + t, k};
    const int64_t v = kv_population(c.v.bitmask + (first + t) * bytes, c.head_dim);
    if (v != c.v.keep) return {KvFault::v_population, sequence, token + t, v};
  }
  return {};
}

}  // namespace sparsecore
