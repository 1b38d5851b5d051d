// SPDX-License-Identifier: Apache-2.0
// Products by every mma instruction of csrc/cuda/mma.h, through its layouts. Runs on the emulated grid in every test
// run and on the GPU by `make device`, which compares the two.
//
// sass products_kernel: some HMMA.16816.F32.BF16 HMMA.16816.F32 HMMA.SP.16832.F32.BF16 HMMA.SP.16832.F32 IMMA.16832.S8.S8
// sass products_kernel: some IMMA.SP.16864.S8.S8 LDSM.16.M88.4 LDSM.16.MT88.4; no LDL STL
#include "cuda/mma.h"
#include "self_tests.h"

namespace self_tests {
namespace {

using namespace sparsecore::cuda;

template <int P>
struct ElementOf {
  using type = uint16_t;
};
template <>
struct ElementOf<4> {
  using type = uint8_t;
};

// Puts `value` into element i of a fragment's registers, P a register.
template <int P>
SPARSECORE_DEVICE void put(uint32_t* r, int i, uint32_t value) {
  r[i / P] |= value << (32 / P * (i % P));
}

template <class Mma, int Selector>
__global__ void products_kernel(Products p) {
  constexpr int P = Mma::packed, K = 8 * P * (Selector < 0 ? 1 : 2), R = Selector < 0 ? 2 : 4;
  using Element = typename ElementOf<P>::type;
  using Sum = typename Mma::Sum;
  __shared__ __align__(16) uint16_t tile[32 * 32];
  const int lane = lane_index();
  const int64_t at = blockIdx.x;
  const Element* const a = static_cast<const Element*>(p.a) + at * 16 * 8 * P;
  const Element* const b = static_cast<const Element*>(p.b) + at * K * 8;
  Sum* const c = static_cast<Sum*>(p.c) + at * 16 * 8;

  FragmentA<P> fa{};
  FragmentB<P, R> fb{};
  FragmentC<Sum> fc{};
  if (Selector >= 0 && p.loads > 0) {
    if constexpr (P == 2 && Selector >= 0) {
      for (int i = lane; i < 16 * 16; i += kLanes) tile[i / 16 * 24 + i % 16] = a[i];  // rows 48 bytes apart
      warp_sync();
      fa = load_fragment_a(tile, 24);
      warp_sync();
      for (int i = lane; i < K * 8; i += kLanes)
        if (p.loads == 1) tile[i % 8 * 40 + i / 8] = b[i];
        else tile[i / 8 * 8 + i % 8] = b[i];
      warp_sync();
      fb = p.loads == 1 ? load_fragment_b(tile, 40) : load_fragment_b_rows(tile, 8);
    }
  } else {
    for (int i = 0; i < fa.count; ++i) {
      const Position at = fa.at(lane, i);
      put<P>(fa.r, i, a[at.row * 8 * P + at.column]);
    }
    for (int i = 0; i < fb.count; ++i) {
      const Position at = fb.at(lane, i);
      put<P>(fb.r, i, b[at.row * 8 + at.column]);
    }
  }
  for (int i = 0; i < fc.count; ++i) {
    const Position at = fc.at(lane, i);
    fc.c[i] = c[at.row * 8 + at.column];
  }
  if constexpr (Selector < 0) {
    mma<Mma>(fc, fa, fb);
  } else {
    Metadata<P, Selector> kept{0xffffffffu};  // of lanes that are not asked: no valid one
    Position first;
    if (kept.at(lane, 0, first)) kept.word = 0;
    for (int i = 0; i < 8; ++i)
      if (kept.at(lane, i, first))
        kept.word |= uint32_t{p.kept[(at * 16 + first.row) * (K / 4) + first.column / 4]} << 4 * i;
    mma_sparse<Mma, Selector>(fc, fa, fb, kept);
  }
  for (int i = 0; i < fc.count; ++i) {
    const Position at = fc.at(lane, i);
    c[at.row * 8 + at.column] = fc.c[i];
  }
}

template <class Mma>
const char* launch_input(const Products& p, void* stream) {
  const Grid grid{dim3(static_cast<unsigned>(p.count)), dim3(kLanes), 0, stream};
  if (p.selector < 0) return sparsecore::cuda::launch(products_kernel<Mma, -1>, grid, p);
  if (p.selector == 0) return sparsecore::cuda::launch(products_kernel<Mma, 0>, grid, p);
  if constexpr (Mma::packed == 2) return sparsecore::cuda::launch(products_kernel<Mma, 1>, grid, p);
  return "selector: 8-bit elements have one";
}

}  // namespace

const char* launch(const Products& p, void* stream) {
  if (p.input == 0) return launch_input<MmaBf16>(p, stream);
  if (p.input == 1) return launch_input<MmaF16>(p, stream);
  return launch_input<MmaS8>(p, stream);
}

}  // namespace self_tests
