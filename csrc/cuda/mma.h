// SPDX-License-Identifier: Apache-2.0
// Tensor-core products of a warp, C [16, 8] += A [16, K] · B [K, 8]: which lane holds which element. From the PTX
// ISA, "Matrix fragments for mma" and "for mma.sp". With P elements a 32-bit register (2 of 16 bits, 4 of 8 bits),
// g = lane / 4, t = lane % 4, a register's P elements side by side, lowest bits first:
//
//   A [16, 8 P], registers a0..a3                B [4 P R, 8], registers b0..b(R-1)     C [16, 8], numbers c0..c3
//            columns                                      column                                columns
//            P t..      4 P + P t..                        g                                     2 t, 2 t + 1
//   row g    [ a0       a2 ]                     row P t.. [ b0 ]                       row g    [ c0  c1 ]
//   row g+8  [ a1       a3 ]               row 4 P + P t.. [ b1 ] ...                   row g+8  [ c2  c3 ]
//
//   inputs       K    P   R        sparse A (2 kept of 4): K    P   R   A's columns are the kept ones, half of K
//   bf16, f16   16    2   2                                32   2   4
//   int8        32    4   2                                64   4   4
//
// Sparse A's metadata: 4 bits for 4 columns, the two kept columns' numbers 0..3, the lower first (0b0100: columns 0
// and 1; 0b1110: 2 and 3), first columns in the lowest bits. Which lane of a group g holds what:
//
//   16-bit, selector s, u = t - 2 s in {0, 1}    bits 0..15: row g, columns 16 u .. 16 u + 15; bits 16..31: row g + 8
//   8-bit                                        row g + 8 (t % 2), columns 32 (t / 2) .. 32 (t / 2) + 31
#pragma once
#include "cuda/ptx.h"
#include "cuda/warp.h"

namespace sparsecore::cuda {

struct Position {
  int row, column;
};

template <int P>
struct FragmentA {
  static constexpr int count = 4 * P;  // elements a lane
  uint32_t r[4];
  SPARSECORE_DEVICE static Position at(int lane, int i) {
    return {lane / 4 + i / P % 2 * 8, lane % 4 * P + i % P + i / (2 * P) * 4 * P};
  }
};

template <int P, int R>
struct FragmentB {
  static constexpr int count = R * P;
  uint32_t r[R];
  SPARSECORE_DEVICE static Position at(int lane, int i) { return {lane % 4 * P + i % P + i / P * 4 * P, lane / 4}; }
};

template <class Number>
struct FragmentC {
  static constexpr int count = 4;
  Number c[4];
  SPARSECORE_DEVICE static Position at(int lane, int i) { return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2}; }
};

// The kept columns' metadata as a lane holds it. `row`, `column`: where its 4-bit entry i (0..7) begins; false: the
// lane's word is not read.
template <int P, int Selector>
struct Metadata {
  uint32_t word;
  SPARSECORE_DEVICE static bool at(int lane, int i, Position& first) {
    const int g = lane / 4, t = lane % 4;
    if (P == 4) first = {g + t % 2 * 8, t / 2 * 32 + i * 4};
    else first = {g + i / 4 * 8, (t - 2 * Selector) * 16 + i % 4 * 4};
    return P == 4 || t / 2 == Selector;
  }
};

// What is multiplied: elements a register, the number that sums are kept in, the instructions.
struct MmaBf16 {
  static constexpr int packed = 2;
  using Sum = float;
  SPARSECORE_DEVICE static void dense(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_bf16(c, a, b);
  }
  template <int Selector>
  SPARSECORE_DEVICE static void sparse(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t kept) {
    ptx::mma_sp_bf16<Selector>(c, a, b, kept);
  }
};
struct MmaF16 {
  static constexpr int packed = 2;
  using Sum = float;
  SPARSECORE_DEVICE static void dense(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_f16(c, a, b);
  }
  template <int Selector>
  SPARSECORE_DEVICE static void sparse(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t kept) {
    ptx::mma_sp_f16<Selector>(c, a, b, kept);
  }
};
struct MmaS8 {
  static constexpr int packed = 4;
  using Sum = int;
  SPARSECORE_DEVICE static void dense(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_s8(c, a, b);
  }
  template <int Selector>
  SPARSECORE_DEVICE static void sparse(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t kept) {
    ptx::mma_sp_s8<Selector>(c, a, b, kept);
  }
};

template <class Mma>
SPARSECORE_DEVICE void mma(FragmentC<typename Mma::Sum>& c, const FragmentA<Mma::packed>& a,
                           const FragmentB<Mma::packed, 2>& b) {
  Mma::dense(c.c, a.r, b.r);
}

template <class Mma, int Selector>
SPARSECORE_DEVICE void mma_sparse(FragmentC<typename Mma::Sum>& c, const FragmentA<Mma::packed>& a,
                                  const FragmentB<Mma::packed, 4>& b, const Metadata<Mma::packed, Selector>& kept) {
  Mma::template sparse<Selector>(c.c, a.r, b.r, kept.word);
}

// A [16, 16] of 16-bit elements whose rows lie in shared memory, `stride` elements apart, 16-byte aligned.
SPARSECORE_DEVICE FragmentA<2> load_fragment_a(const uint16_t* rows, int stride) {
  FragmentA<2> a;
  const int lane = lane_index();
  ptx::ldmatrix(a.r, rows + lane % 16 * stride + lane / 16 * 8);
  return a;
}

// B [32, 8] of 16-bit elements from its transpose's rows [8, 32], stored as load_fragment_a's are.
SPARSECORE_DEVICE FragmentB<2, 4> load_fragment_b(const uint16_t* columns, int stride) {
  FragmentB<2, 4> b;
  const int lane = lane_index();
  ptx::ldmatrix(b.r, columns + lane % 8 * stride + lane / 8 * 8);
  return b;
}

// B [32, 8] from its own rows.
SPARSECORE_DEVICE FragmentB<2, 4> load_fragment_b_rows(const uint16_t* rows, int stride) {
  FragmentB<2, 4> b;
  ptx::ldmatrix_transposed(b.r, rows + lane_index() * stride);
  return b;
}

}  // namespace sparsecore::cuda
