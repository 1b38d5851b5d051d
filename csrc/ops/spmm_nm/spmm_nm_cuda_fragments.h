// SPDX-License-Identifier: Apache-2.0
// A word of W, 64 columns of 16 rows, as a warp's fragments of A for tensor cores. Sums do not ask for an order of
// columns, so each lane keeps those that it can load in one piece: lane (g, t) has a quarter of the word, columns
// 16 t .. 16 t + 15, of rows g and g + 8, and x is laid out to match.
//
//   2:4          mma.sp takes 32 columns. A register holds the two kept of a group, groups 4 t + e, e = 0..3, of the
//                quarter: product j of two has registers e = 2 j and 2 j + 1. The instruction's columns 4 t .. of its
//                first half are then group 4 t + 2 j, of its second half 4 t + 2 j + 1. Its metadata for product j is
//                asked of lanes t = 2 j + u, of whose 4 fields each is field t of a quarter: a transpose of 4 by 4
//                fields among the 4 lanes, of both rows at once in the halves of a register.
//   other kinds  the quarter is spread to 8 pairs of columns e; mma takes 16 columns, product j of four has pairs
//                2 j and 2 j + 1.
//   x            [rows of x][64 columns a word]: granules of 4 (2:4) or 2 columns, granule 4 e + t is granule
//                E t + e of the word, E = 4 or 8 of them a lane: 32 adjacent columns are what ldmatrix gives as B.
//
// Instructions for a word of 16 rows, a warp: 2:4 of 16 bits 4 loads, 17 for metadata, 9 for its check; 1:4 some 60;
// 4:8 some 180; values of 8 bits 4 (int8) to 8 (float8) more each of 16. An H100's memory brings the word's 1152 bytes
// (2:4, bf16) to an SM in 80 cycles of 4 instructions.
#pragma once
#include "cuda/mma.h"
#include "ops/spmm_nm/spmm_nm_cuda_elements.h"

namespace sparsecore::spmm_nm {
namespace {

using namespace cuda;

// To x's dtype; exact, as that holds what is stored.
SPARSECORE_DEVICE uint32_t narrow(float v, Dtype x) {
  return x == Dtype::bf16 ? __float_as_uint(v) >> 16 : ptx::f32_to_f16(v);
}

// Of 4 columns the bits of `nibble` say which take the next 16 bits of `queue`.
SPARSECORE_DEVICE void spread(uint64_t queue, unsigned nibble, uint32_t* pairs) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const unsigned bit = nibble >> j & 1;
    const uint32_t v = bit ? static_cast<uint32_t>(queue) & 0xffff : 0;
    pairs[j / 2] = j % 2 ? pairs[j / 2] | v << 16 : v;
    queue >>= 16 * bit;
  }
}

// V: uint16_t, x's own dtype, or uint8_t.
template <class V, int n, int m>
struct Word {
  static constexpr bool kSparse = n == 2 && m == 4;
  static constexpr int kStored = 16 / m * n;                  // of a lane's quarter of a row
  static constexpr int kPieces = (kStored * static_cast<int>(sizeof(V)) + 3) / 4;
  static constexpr int kPairs = kSparse ? 4 : 8;              // registers of a quarter
  static constexpr int kCodeBits = static_cast<int>(nm_code(n, m)) * 16 / m;
  static constexpr int kGranule = kSparse ? 4 : 2;            // columns

  // As memory has them, [h]: of row g + 8 h.
  uint32_t raw[2][kPieces];
  uint32_t code[2];  // of the quarter, 16 bits at most

  // The word whose quarter and codes begin at `values` and `codes` in row g; row g + 8's lie `values_apart` elements
  // and `codes_apart` bytes on. Of `rows` rows from g on, the others stay as they are.
  SPARSECORE_DEVICE void load(const V* values, const uint8_t* codes, int64_t values_apart, int64_t codes_apart,
                              int rows) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (8 * h >= rows) return;
      const V* const p = values + h * values_apart;
      const uint8_t* const c = codes + h * codes_apart;
      if constexpr (kStored * sizeof(V) % 4 == 0) {
        load_all(reinterpret_cast<const uint32_t*>(p), raw[h]);
      } else if constexpr (kStored * sizeof(V) == 2) {
        raw[h][0] = *reinterpret_cast<const uint16_t*>(p);
      } else {
        raw[h][0] = *p;
      }
      if constexpr (kCodeBits < 8) code[h] = *c >> lane_index() % 2 * 4 & 15;  // 1:16
      else code[h] = static_cast<uint32_t>(nm_codes<n, m, 16>(c, 0));
    }
  }
  // Elements and bytes from a word's begin to the lane's quarter.
  SPARSECORE_DEVICE static int first_value() { return lane_index() % 4 * kStored; }
  SPARSECORE_DEVICE static int first_byte() { return lane_index() % 4 * kCodeBits / 8; }

  // Stored elements of half h as x's dtype, two a register.
  SPARSECORE_DEVICE void widened(int h, Dtype x, Dtype value, uint32_t (&out)[(kStored + 1) / 2]) const {
    if constexpr (sizeof(V) == 2) {
#pragma unroll
      for (int i = 0; i < (kStored + 1) / 2; ++i) out[i] = raw[h][i];
    } else {
#pragma unroll
      for (int i = 0; i < (kStored + 1) / 2; ++i) {
        const uint32_t pair = raw[h][i / 2] >> 16 * (i % 2);
        const uint32_t low = narrow(widen_as(static_cast<uint8_t>(pair), value), x);
        const uint32_t high = 2 * i + 1 < kStored ? narrow(widen_as(static_cast<uint8_t>(pair >> 8), value), x) : 0;
        out[i] = low | high << 16;
      }
    }
  }

  // The quarter's registers of both rows; those of columns >= live (of the word) are 0. Returns bit h where positions
  // of row g + 8 h are wrong.
  SPARSECORE_DEVICE unsigned decode(Dtype x, Dtype value, int live, uint32_t (&pairs)[2][kPairs],
                                    uint32_t& kept) const {
    const int t = lane_index() % 4;
    unsigned bad = 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t stored[(kStored + 1) / 2];
      widened(h, x, value, stored);
      if constexpr (kSparse) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          pairs[h][e] = stored[e];
          if (live < kNmColumns) {
            const int column = 16 * t + 4 * e, low = static_cast<int>(code[h] >> 4 * e & 3),
                      high = static_cast<int>(code[h] >> (4 * e + 2) & 3);
            if (column + low >= live) pairs[h][e] &= 0xffff0000u;
            if (column + high >= live) pairs[h][e] &= 0x0000ffffu;
          }
        }
      } else {
        bad |= static_cast<unsigned>(!nm_codes_hold<n, m, 16>(code[h])) << h;
        spread_all(stored, code[h], pairs[h]);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const int left = live - 16 * t - 2 * e;
          if (left < 2) pairs[h][e] = left < 1 ? 0 : pairs[h][e] & 0xffff;
        }
      }
    }
    kept = 0;
    if constexpr (kSparse) {
      const uint32_t both = code[0] | code[1] << 16;
#pragma unroll
      for (int q = 0; q < 4; ++q)
        kept |= (warp_shuffle(both, lane_index() / 4 * 4 + q) >> 4 * t & 0x000f000fu) << 4 * q;
      const uint32_t faults = static_cast<uint32_t>(nm_word_faults<2, 4>(kept));
      bad = ((faults & 0xffff) != 0 ? 1 : 0) | (faults >> 16 != 0 ? 2 : 0);
      kept = (kept & ~((faults >> 2) * 15)) | faults;  // 0b0100, what the instruction can take
    }
    return bad;
  }

 private:
  SPARSECORE_DEVICE static void spread_all(const uint32_t (&stored)[(kStored + 1) / 2], unsigned code,
                                           uint32_t (&pairs)[kPairs]) {
#pragma unroll
    for (int g = 0; g < 16 / m; ++g) {
      uint32_t* const here = pairs + g * m / 2;
      if constexpr (n == 4) {
        const uint64_t all = stored[2 * g] | static_cast<uint64_t>(stored[2 * g + 1]) << 32;
        const unsigned mask = code >> 8 * g & 255, s = 8 * static_cast<unsigned>(__popc(mask & 15));
        spread(all, mask & 15, here);
        spread(all >> s >> s, mask >> 4, here + 2);
      } else if constexpr (n == 6) {
        const uint64_t all = stored[3 * g] | static_cast<uint64_t>(stored[3 * g + 1]) << 32;
        const unsigned mask = code >> 8 * g & 255, s = 8 * static_cast<unsigned>(__popc(mask & 15));
        spread(all, mask & 15, here);
        const uint64_t last = stored[3 * g + 2];
        spread(all >> s >> s | last << (32 - s) << (32 - s), mask >> 4, here + 2);
      } else {
#pragma unroll
        for (int i = 0; i < m / 2; ++i) here[i] = 0;
#pragma unroll
        for (int r = 0; r < n; ++r) {
          constexpr int kField = static_cast<int>(nm_field(m));
          const int q = g * n + r;
          const unsigned position = code >> q * kField & (m - 1);
          const uint32_t v = (stored[q / 2] >> 16 * (q % 2) & 0xffff) << 16 * (position & 1);
#pragma unroll
          for (int i = 0; i < m / 2; ++i) here[i] |= position / 2 == static_cast<unsigned>(i) ? v : 0;
        }
      }
    }
  }
};

// y[i, row] without scale and bias by the stored elements alone, in order.
template <class V, int n, int m>
SPARSECORE_DEVICE_CALL float exact_sum(const V* values, Dtype value, const uint8_t* codes, const uint16_t* x, Dtype in,
                                       int64_t k) {
  float sum = 0.0f;
  for (int64_t column = 0; column < k; column += 16)
    nm_each<n, m, 16>(nm_codes<n, m, 16>(codes, column), [&](int c, int q) {
      if (column + c < k) sum = fmaf(widen_as(values[column / m * n + q], value), widen_as(x[column + c], in), sum);
    });
  return sum;
}

}  // namespace
}  // namespace sparsecore::spmm_nm
