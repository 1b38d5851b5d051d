// SPDX-License-Identifier: Apache-2.0
// What a thread of spgemm works in, all zeros between rows, and which way a row takes through it.
//
//   bits  [window]       the row's columns by word        key, slot_bits, slot_base [slots]  the same, hashed
//   base  [window]       where a word's columns begin     order [2 * most_hashed]  word << 32 | slot
//   list  [window + 16]  words with columns               sums  [64 * window]      all but ranks
//   met   [64 * window]  stamp of the last row that met a column; stamp, the row's own, 1 to 255
//   columns, factors, elements [kStage + 64]  products side by side; met, these and listed: Sums::staged and dense
//   listed [kStage + 16]  columns of a row as it met them
#pragma once
#include "ops/spgemm/spgemm_lanes.h"

namespace sparsecore::spgemm {
namespace {

// A row's sums lie dense up to this many bytes, which stay in the second cache. Ranks touch less but know
// late where they add, and the CPU runs loads past such stores in vain: half as fast on graphs.
constexpr int64_t kDenseBytes = 1 << 20;
// Products that are staged before they are summed.
constexpr int64_t kStage = 512;
// Rows of any length are staged where the rows of B that they come from are shorter than this on average.
constexpr int64_t kShort = 8;
// A row is hashed when it has fewer products than this share of the words a scan would meet.
constexpr int64_t kScanned = 16;
// Sorted by insertion up to here, by 8-bit digits above.
constexpr int64_t kInsertion = 32;

inline int64_t word_count(int64_t n) { return (n + 63) / 64; }
inline int64_t slot_count(int64_t products) {
  int64_t slots = 16;
  while (slots < 2 * products) slots *= 2;
  return slots;
}

// Whether short rows are lists of columns as they are met.
inline bool lists_rows(const Args& a) { return a.sums == Sums::staged || a.sums == Sums::dense; }

struct Scratch {
  uint64_t *bits, *slot_bits, *order, *stamp;
  int32_t *base, *list, *key, *slot_base, *columns, *listed;
  unsigned char* met;
  void *sums, *factors, *elements;
  int64_t bytes;

  Scratch(const Args& a, void* memory) : bytes(0) {
    char* const from = static_cast<char*>(memory);
    const auto part = [&](int64_t size) {
      char* const at = from + bytes;
      bytes += (size + 63) / 64 * 64;
      return static_cast<void*>(at);
    };
    const int64_t slots = a.most_hashed > 0 ? slot_count(a.most_hashed) : 0;
    bits = static_cast<uint64_t*>(part(8 * a.window));
    base = static_cast<int32_t*>(part(4 * a.window));
    list = static_cast<int32_t*>(part(4 * (a.window + 16)));
    slot_bits = static_cast<uint64_t*>(part(8 * slots));
    order = static_cast<uint64_t*>(part(16 * a.most_hashed));
    key = static_cast<int32_t*>(part(4 * slots));
    slot_base = static_cast<int32_t*>(part(4 * slots));
    const int64_t bytes_each = a.a.values ? dtype_bytes(a.a.value) : 0;
    sums = part(a.sums == Sums::ranks ? 0 : 64 * a.window * bytes_each);
    const bool staged = lists_rows(a);
    stamp = static_cast<uint64_t*>(part(8));
    met = static_cast<unsigned char*>(part(staged ? 64 * a.window : 0));
    columns = static_cast<int32_t*>(part(staged ? 4 * (kStage + 64) : 0));
    listed = static_cast<int32_t*>(part(staged ? 4 * (kStage + 16) : 0));
    factors = part(staged ? (kStage + 64) * bytes_each : 0);
    elements = part(staged ? (kStage + 64) * bytes_each : 0);
  }
};

inline bool fits_dense(const Args& a) {
  return 64 * word_count(a.b.k) <= kDenseBytes && a.b.k * (a.a.values ? dtype_bytes(a.a.value) : 0) <= kDenseBytes;
}
inline bool needs_words(const Args& a) { return !fits_dense(a) || a.work[a.a.n] >= kShort * a.a.nnz; }

template <class Lanes>
int64_t plan(Args& a, int64_t words, int64_t longest, int64_t bytes) {
  const int64_t all = word_count(a.b.k);
  a.sums = Sums::ranks;
  if (!a.words.word) a.sums = Sums::staged;
  else if (fits_dense(a))
    a.sums = a.strict && a.b.nnz >= Lanes::thick_bits(a.a.value) * words ? Sums::thick
             : needs_words(a)                                            ? Sums::dense
                                                                         : Sums::staged;
  a.window = all;
  const int64_t most_hashed = longest < all / kScanned ? longest : all / kScanned;
  a.most_hashed = lists_rows(a) ? 0 : most_hashed;
  int64_t need = Scratch(a, nullptr).bytes;
  if (need > bytes && a.words.word) {  // sums first, then narrower windows
    a.sums = Sums::ranks;
    a.most_hashed = most_hashed;
    need = Scratch(a, nullptr).bytes;
  }
  while (need > bytes && a.window > 16 && a.words.word) {
    a.window = (a.window + 1) / 2;
    if (a.most_hashed > a.window / kScanned) a.most_hashed = a.window / kScanned;
    need = Scratch(a, nullptr).bytes;
  }
  return need;
}

// Rising order of keys[0, count), by their upper halves, which are below `limit`. other: as much room.
inline void sort_by_word(uint64_t* keys, uint64_t* other, int64_t count, int64_t limit) {
  if (count <= kInsertion) {
    for (int64_t i = 1; i < count; ++i) {
      const uint64_t key = keys[i];
      int64_t j = i;
      for (; j > 0 && keys[j - 1] > key; --j) keys[j] = keys[j - 1];
      keys[j] = key;
    }
    return;
  }
  uint64_t* from = keys;
  for (int shift = 32; (limit - 1) >> (shift - 32) != 0; shift += 8) {
    int64_t starts[257] = {};
    for (int64_t i = 0; i < count; ++i) ++starts[(from[i] >> shift & 255) + 1];
    for (int d = 0; d < 256; ++d) starts[d + 1] += starts[d];
    for (int64_t i = 0; i < count; ++i) other[starts[from[i] >> shift & 255]++] = from[i];
    uint64_t* const swap = from;
    from = other;
    other = swap;
  }
  if (from != keys) std::memcpy(keys, from, static_cast<size_t>(count) * sizeof(uint64_t));
}

// Words by linear probing; a key is a word + 1, and 0 an empty slot.
struct Hashed {
  const Scratch& s;
  uint32_t mask;
  int64_t count = 0;  // of order

  Hashed(const Scratch& scratch, int64_t products)
      : s(scratch), mask(static_cast<uint32_t>(slot_count(products)) - 1) {}

  // The slot of `word`, which takes an empty one if it has none; -1 if it may not.
  template <bool Insert>
  int64_t slot(int32_t word) {
    uint32_t at = static_cast<uint32_t>(word) * 0x9e3779b1u;
    for (at = (at ^ at >> 15) & mask;; at = (at + 1) & mask) {
      if (s.key[at] == word + 1) return at;
      if (s.key[at] == 0) {
        if (!Insert) return -1;
        s.key[at] = word + 1;
        s.order[count++] = static_cast<uint64_t>(word) << 32 | at;
        return at;
      }
    }
  }

  void clear() {
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t at = static_cast<uint32_t>(s.order[i]);
      s.key[at] = 0;
      s.slot_bits[at] = 0;
    }
  }
};

inline uint64_t below(int64_t c) { return (uint64_t{1} << (c & 63)) - 1; }

}  // namespace
}  // namespace sparsecore::spgemm
