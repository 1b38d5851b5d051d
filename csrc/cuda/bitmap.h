// SPDX-License-Identifier: Apache-2.0
// A warp's walk through one row of a Bitmap, 1024 columns a tile:
//
//   words       0         1         2     ...   31        lane l holds word l of the tile and how many of the row's
//   columns  0..31     32..63    64..95       992..1023   values lie before it
//
// In step s of eight, lane l looks at columns 128 s + 4 l .. + 3: bits 4 (l % 8) .. + 3 of word 4 s + l / 8. The
// arrays are untrusted: a row that breaks an invariant has no bits from the tile on where that shows.
#pragma once
#include "core/bitmap.h"
#include "cuda/warp.h"

namespace sparsecore::cuda {

constexpr int kTileColumns = 1024;
constexpr int kStepColumns = 128;
constexpr int kLaneColumns = 4;

// What a lane has of a step: bit j is column j of its four; `at`, among the row's values, is that of the lowest.
struct BitmapStep {
  unsigned bits;
  int at;
};

struct BitmapRow {
  const uint32_t* words;  // from the next tile on
  int64_t words_left, columns_left;
  int64_t begin;  // of its values
  int length;     // of its values; -1: the row is bad
  int seen;       // bits so far
  uint32_t bits;  // the lane's word
  int before;     // values before it

  // A row at or past n has no columns.
  SPARSECORE_DEVICE void open(const BitmapView& w, int64_t row) {
    const bool inside = row < w.n;
    const int64_t first = inside ? w.row_offsets[row] : 0, end = inside ? w.row_offsets[row + 1] : 0;
    const bool good = first >= 0 && first <= end && end <= w.nnz && end - first <= w.k;
    begin = good ? first : 0;
    length = good ? static_cast<int>(end - first) : -1;
    words = reinterpret_cast<const uint32_t*>(w.bitmask) + row * 2 * bitmap_words(w.k);
    words_left = good && inside ? 2 * bitmap_words(w.k) : 0;
    columns_left = w.k;
    seen = 0;
  }

  SPARSECORE_DEVICE void next_tile() {
    const int64_t left = columns_left - lane_index() * 32;  // from the lane's word on
    bits = lane_index() < words_left ? words[lane_index()] : 0;
    const bool padding = left < 32 && (left <= 0 ? bits : bits >> left) != 0;
    int here;
    before = seen + warp_exclusive_sum(__popc(bits), here);
    seen += here;
    if (seen > length || warp_any(padding)) {
      length = -1;
      words_left = 0;
      bits = 0;
    }
    words += kTileColumns / 32;
    words_left -= kTileColumns / 32;
    columns_left -= kTileColumns;
  }

  SPARSECORE_DEVICE BitmapStep step(int s) const {
    const int lane = lane_index(), from = 4 * s + lane / 8, shift = lane % 8 * kLaneColumns;
    const uint32_t word = warp_shuffle(bits, from);
    const int at = warp_shuffle(before, from);
    return {word >> shift & 15, at + __popc(word & ((1u << shift) - 1))};
  }

  // After the last tile.
  SPARSECORE_DEVICE bool good() const { return seen == length; }
};

}  // namespace sparsecore::cuda
