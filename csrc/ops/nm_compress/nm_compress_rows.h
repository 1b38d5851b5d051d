// SPDX-License-Identifier: Apache-2.0
// nm_compress in plain loops, for the scalar kernel and for what others leave to it.
#pragma once
#include "ops/nm_compress/nm_compress.h"

namespace sparsecore::nm_compress {
namespace {

constexpr uint32_t kNan = 0x7f800001u;

// Orders as magnitude does; all NaNs are alike.
SPARSECORE_INLINE uint32_t key(float w) {
  const uint32_t magnitude = f32_to_bits(w) & 0x7fffffffu;
  return magnitude > kNan ? kNan : magnitude;
}

// |q| <= 127.5: the sum with 1.5 * 2^23 rounds at 1, ties to even.
SPARSECORE_INLINE int8_t rounded(float q) {
  return static_cast<int8_t>(static_cast<int32_t>(q + 0x1.8p23f - 0x1.8p23f));
}

struct Row {
  const Args& a;
  int64_t row;
  const uint8_t* mask;
  Row(const Args& args, int64_t r) : a(args), row(r), mask(args.mask ? args.mask + r * args.mask_stride : nullptr) {}

  SPARSECORE_INLINE float at(int64_t c) const { return load_f32(a.w, a.from, row * a.stride + c); }
  // What is stored of a column: nothing but 0 of one that the mask leaves out.
  SPARSECORE_INLINE float stored(int64_t c) const { return c < a.k && !(mask && !mask[c]) ? at(c) : 0.0f; }
};

// The columns of group [c0, c0 + group) that are kept, a bit each; ~0: the mask selects too many.
SPARSECORE_INLINE uint32_t choose(const Row& r, int64_t c0, int64_t keep, int64_t group) {
  const int64_t live = r.a.k - c0 < group ? r.a.k - c0 : group;
  uint32_t taken = 0;
  int64_t left = keep;
  if (r.mask) {
    for (int64_t j = 0; j < live; ++j)
      if (r.mask[c0 + j]) taken |= 1u << j, --left;
    if (left < 0) return ~0u;
  } else {
    uint32_t keys[16];
    for (int64_t j = 0; j < live; ++j) keys[j] = key(r.at(c0 + j));
    for (; left > 0; --left) {
      int64_t best = -1;
      for (int64_t j = 0; j < live; ++j)
        if (!(taken >> j & 1) && (best < 0 || keys[j] > keys[best])) best = j;
      if (best < 0) break;
      taken |= 1u << best;
    }
  }
  for (int64_t j = 0; left > 0; ++j)
    if (!(taken >> j & 1)) taken |= 1u << j, --left;
  return taken;
}

// The field of a group whose kept columns are the bits of `taken`.
SPARSECORE_INLINE uint64_t code_of(uint32_t taken, int64_t keep, int64_t group) {
  if (nm_is_mask(keep, group)) return taken;
  uint64_t code = 0;
  for (int64_t at = 0; taken != 0; taken &= taken - 1, at += nm_field(group))
    code |= static_cast<uint64_t>(__builtin_ctz(taken)) << at;
  return code;
}

// Writes a row's positions; false: the mask selects too many.
inline bool place_packed(const Row& r) {
  const Args& a = r.a;
  const NmView view = a.view();
  uint8_t* out = static_cast<uint8_t*>(a.positions) + r.row * view.row_bytes();
  const int64_t bytes = nm_word_bytes(a.keep, a.group), code = nm_code(a.keep, a.group);
  for (int64_t c0 = 0; c0 < a.k; c0 += kNmColumns, out += bytes) {
    uint64_t word = 0;
    for (int64_t g = 0; g < kNmColumns / a.group; ++g) {
      const int64_t begin = c0 + g * a.group;
      // A group of padding alone keeps its first columns.
      const uint32_t taken = begin < a.k ? choose(r, begin, a.keep, a.group) : (1u << a.keep) - 1;
      if (taken == ~0u) return false;
      word |= code_of(taken, a.keep, a.group) << g * code;
    }
    std::memcpy(out, &word, static_cast<size_t>(bytes));
  }
  return true;
}

// The key of which `left` more than those above it are kept, by bytes from the highest down.
inline uint32_t threshold(const Row& r, int64_t& left) {
  uint32_t prefix = 0, known = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    int64_t count[256] = {};
    for (int64_t c = 0; c < r.a.k; ++c) {
      const uint32_t k = key(r.at(c));
      count[k >> shift & 255] += (k & known) == prefix;
    }
    uint32_t digit = 255;
    while (digit > 0 && count[digit] < left) left -= count[digit--];
    prefix |= digit << shift;
    known |= 255u << shift;
  }
  return prefix;
}

inline bool place_row(const Row& r) {
  const Args& a = r.a;
  int64_t left = a.keep, at = r.row * a.keep;
  uint32_t least = 0;
  if (r.mask) {
    for (int64_t c = 0; c < a.k; ++c) left -= r.mask[c] != 0;
    if (left < 0) return false;
  } else if (left > 0) {
    least = threshold(r, left);
  }
  for (int64_t c = 0; c < a.k && at < (r.row + 1) * a.keep; ++c) {
    const uint32_t k = r.mask ? 0 : key(r.at(c));
    const bool sure = r.mask ? r.mask[c] != 0 : k > least;
    const bool filler = !sure && (r.mask || k == least) && left > 0;
    left -= filler;
    if (!sure && !filler) continue;
    if (a.index == Dtype::i16) static_cast<int16_t*>(a.positions)[at] = static_cast<int16_t>(c);
    else static_cast<int32_t*>(a.positions)[at] = static_cast<int32_t>(c);
    ++at;
  }
  return true;
}

// fn(column, place) for a row's stored elements, padding too.
template <class Fn>
SPARSECORE_INLINE void each(const NmView& w, int64_t row, const Fn& fn) {
  if (!w.packed()) return nm_row(w, row, fn);
  nm_visit(w.keep, w.group, [&]<int n, int m>() {
    int64_t p = 0;
    for (int64_t i = 0; i < nm_words(w.k); ++i) {
      const uint64_t word = nm_word<n, m>(w.codes(row) + i * nm_word_bytes(n, m));
      for (int64_t g = 0; g < kNmColumns / m; ++g) {
        int32_t columns[n];
        nm_group<n, m>(word, g, columns);
        for (int j = 0; j < n; ++j, ++p) fn(i * kNmColumns + columns[j], p);
      }
    }
  });
}

// Writes a row's values, and its scale, at the positions that are there.
inline void fill_values(const Row& r) {
  const Args& a = r.a;
  const NmView view = a.view();
  const int64_t first = r.row * view.row_values();
  if (!a.scales) {
    each(view, r.row, [&](int64_t c, int64_t p) { store_f32(a.values, a.to, first + p, r.stored(c)); });
    return;
  }
  uint32_t largest = 0;
  each(view, r.row, [&](int64_t c, int64_t) {
    const uint32_t magnitude = f32_to_bits(r.stored(c)) & 0x7fffffffu;
    if (magnitude > largest) largest = magnitude;
  });
  const float scale = a.scales[r.row] = row_scale(largest, largest_code(a.to));
  const bool usable = usable_scale(scale);
  each(view, r.row, [&](int64_t c, int64_t p) {
    const float q = usable ? r.stored(c) / scale : 0.0f;
    if (a.to == Dtype::i8) static_cast<int8_t*>(a.values)[first + p] = rounded(q);
    else static_cast<uint8_t*>(a.values)[first + p] = f32_to_f8(q);
  });
}

inline int64_t compress_rows(const Args& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const Row r(a, row);
    if (!(a.index == Dtype::i8 ? place_packed(r) : place_row(r))) return row;
    fill_values(r);
  }
  return -1;
}

}  // namespace
}  // namespace sparsecore::nm_compress
