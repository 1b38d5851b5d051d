// SPDX-License-Identifier: Apache-2.0
// N:M weights as threads read them. Packed groups: a lane takes whole groups, whose positions are a few bits.
// A constant fan-in: a warp walks through a row, 32 elements a step.
//
//   element   at + 0    1    2   ...   31
//   column        3    8   20   ...          lane l holds that of element at + l; those below `end` are taken, `at`
//                                            moves past them, the next call begins there
//
// The arrays are untrusted: a fan-in's columns are compared with k and with each other before one is used.
#pragma once
#include "core/nm.h"
#include "cuda/convert.h"
#include "cuda/copy.h"
#include "cuda/warp.h"

namespace sparsecore::cuda {

struct F8 {
  uint8_t bits;
};
SPARSECORE_DEVICE float widen(F8 v) { return f8_to_f32(v.bits); }

// Elements of one size; which dtype they are is the same for all.
template <class V>
SPARSECORE_DEVICE float widen_as(V v, Dtype d) {
  if constexpr (sizeof(V) == 4) return v;
  else if constexpr (sizeof(V) == 2) return d == Dtype::bf16 ? widen(Bf16{v}) : widen(F16{v});
  else return d == Dtype::i8 ? widen(static_cast<int8_t>(v)) : widen(F8{v});
}

template <int Bits>
constexpr uint64_t kLowBits = Bits == 64 ? ~uint64_t{0} : (uint64_t{1} << Bits) - 1;

// Positions of `Columns` columns from `column` on, whole groups, 64 bits at most; `row` is a row's first byte.
template <int n, int m, int Columns>
SPARSECORE_DEVICE uint64_t nm_codes(const uint8_t* row, int64_t column) {
  constexpr int kBits = static_cast<int>(nm_code(n, m)) * Columns / m;
  const int64_t bit = column / m * nm_code(n, m);
  if constexpr (kBits < 8) return row[bit / 8] >> bit % 8 & kLowBits<kBits>;
  else if constexpr (kBits == 8) return row[bit / 8];
  else if constexpr (kBits == 16) return *reinterpret_cast<const uint16_t*>(row + bit / 8);
  else if constexpr (kBits == 32) return *reinterpret_cast<const uint32_t*>(row + bit / 8);
  else return *reinterpret_cast<const uint64_t*>(row + bit / 8);
}

// Whether the positions of so many columns break no invariant.
template <int n, int m, int Columns>
SPARSECORE_DEVICE bool nm_codes_hold(uint64_t codes) {
  return (nm_word_faults<n, m>(codes) & kLowBits<static_cast<int>(nm_code(n, m)) * Columns / m>) == 0;
}

// fn(column within `Columns`, element) for each stored element of whole groups; a mask with too few bits gives fewer.
template <int n, int m, int Columns, class Fn>
SPARSECORE_DEVICE void nm_each(uint64_t codes, const Fn& fn) {
  constexpr int kCode = static_cast<int>(nm_code(n, m)), kField = static_cast<int>(nm_field(m));
#pragma unroll
  for (int g = 0; g < Columns / m; ++g) {
    unsigned field = static_cast<unsigned>(codes >> g * kCode & kLowBits<kCode>);
#pragma unroll
    for (int r = 0; r < n; ++r)
      if constexpr (nm_is_mask(n, m)) {
        if (field != 0) fn(g * m + __ffs(static_cast<int>(field)) - 1, g * n + r);
        field &= field - 1;
      } else {
        fn(g * m + static_cast<int>(field >> r * kField & (m - 1)), g * n + r);
      }
  }
}

// Which of its group's elements column j has, of those whose code this is; -1: it is not stored.
template <int n, int m>
SPARSECORE_DEVICE int nm_element(unsigned code, int j) {
  if constexpr (nm_is_mask(n, m)) {
    return code >> j & 1 ? __popc(code & ((1u << j) - 1)) : -1;
  } else {
    int found = -1;
#pragma unroll
    for (int r = 0; r < n; ++r)
      if (static_cast<int>(code >> r * nm_field(m) & (m - 1)) == j) found = r;
    return found;
  }
}

struct FanInRow {
  const void* columns;  // of the row
  int keep, at, last;   // elements, those that were taken, what the next column exceeds
  int k;
  bool wide, good;

  SPARSECORE_DEVICE void open(const NmView& w, int64_t row) {
    wide = w.index == Dtype::i32;
    columns = static_cast<const char*>(w.positions) + row * w.keep * (wide ? 4 : 2);
    keep = static_cast<int>(w.keep);
    k = static_cast<int>(w.k);
    at = 0;
    last = -1;
    good = true;
  }

  // The lanes make take(column, load(element)) for elements of columns below `end`, at most k, U steps' loads at once;
  // load is asked for any element of the row. A row that breaks an invariant ends.
  template <int U, class Load, class Take>
  SPARSECORE_DEVICE void below(int end, const Load& load, const Take& take) {
    const int lane = lane_index();
    while (at < keep) {
      int column[U];
      decltype(load(0)) value[U];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const int here = at + u * kLanes + lane;
        column[u] = 0x7fffffff;
        if (here < keep) {
          column[u] = wide ? static_cast<const int32_t*>(columns)[here] : static_cast<const int16_t*>(columns)[here];
          value[u] = load(here);
        }
      }
      bool wrong = false;
      int count = 0, top = last;
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const int left = warp_shuffle(column[u], lane == 0 ? 0 : lane - 1), before = lane == 0 ? top : left;
        wrong |= at + u * kLanes + lane < keep && (column[u] <= before || column[u] >= k);
        count += __popc(warp_ballot(column[u] < end));
        top = warp_shuffle(column[u], kLanes - 1);
      }
      if (warp_any(wrong)) {
        good = false;
        at = keep;
        return;
      }
#pragma unroll
      for (int u = 0; u < U; ++u)
        if (column[u] < end) take(column[u], value[u]);
      at += count;
      last = count == U * kLanes ? top : end - 1;
      if (count < U * kLanes) return;
    }
  }
};

}  // namespace sparsecore::cuda
