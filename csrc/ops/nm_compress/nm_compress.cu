// SPDX-License-Identifier: Apache-2.0
// nm_compress on CUDA. Packed: a warp owns a row, a lane 8 columns a step (16 of 1:16). A column's rank in its group,
// by comparisons among registers, says whether it is kept; a group's values leave in one store, codes of 4 bits by
// pairs of lanes. w is read once, for values of 8 bits twice, the second time from caches, as the row's scale comes
// first. Constant fan-in: a block owns a row; four passes of a count of 256 digits find the least key that is kept,
// a fifth lists columns in order by a sum over the block, values follow those. Bytes of 64 columns, 2:4 fp32 to bf16:
// 256 read, 64 + 8 written; about 150 instructions a warp for 256 columns, a third of what an H100 issues while they
// arrive: 4096 x 4096 in 25 us at 3.35 TB/s. A constant fan-in reads w from the L2 cache five times.
// On sm_100a one register of it waits in local memory, stored and loaded once. Not yet measured on a device.
//
// sass nm_compress_kernel: LDG STG SHFL; no LDL STL
// sass nm_compress_kernel: some LDG.128 LDG.64 STG.128 STG.64
// sass fan_in_compress_kernel: LDG STG ATOMS MATCH BAR.SYNC
#include "cuda/atomic.h"
#include "cuda/block.h"
#include "cuda/nm.h"
#include "ops/nm_compress/nm_compress_rows.h"

namespace sparsecore::nm_compress {
namespace {

using namespace cuda;

constexpr int kWarps = 4;
constexpr int kBlock = 256;  // threads of a constant fan-in's row, as many as a digit has values

SPARSECORE_DEVICE uint32_t magnitude(float v) { return __float_as_uint(v) & 0x7fffffffu; }

// What is stored of v as 8 bits.
SPARSECORE_DEVICE uint8_t quantised(float v, float scale, Dtype to) {
  const float q = usable_scale(scale) ? v / scale : 0.0f;
  return to == Dtype::i8 ? static_cast<uint8_t>(rounded(q)) : f32_to_f8(q);
}

// Elements [at, at + Q) of values; Q of 1, 2, 4 or 6, at a multiple of it.
template <int Q>
SPARSECORE_DEVICE void store_values(void* values, Dtype to, int64_t at, const float (&v)[Q], float scale) {
  constexpr int P = Q == 6 ? 2 : Q;
#pragma unroll
  for (int i = 0; i < Q; i += P) {
    if (to == Dtype::f32) {
      Pack<float, P> out;
#pragma unroll
      for (int j = 0; j < P; ++j) out.at[j] = v[i + j];
      store_pack(static_cast<float*>(values) + at + i, out);
    } else if (to == Dtype::bf16 || to == Dtype::f16) {
      Pack<uint16_t, P> out;
#pragma unroll
      for (int j = 0; j < P; ++j)
        out.at[j] = to == Dtype::bf16 ? ptx::f32_to_bf16(v[i + j]) : ptx::f32_to_f16(v[i + j]);
      store_pack(static_cast<uint16_t*>(values) + at + i, out);
    } else {
      Pack<uint8_t, P> out;
#pragma unroll
      for (int j = 0; j < P; ++j) out.at[j] = quantised(v[i + j], scale, to);
      store_pack(static_cast<uint8_t*>(values) + at + i, out);
    }
  }
}

template <int S, class From>
SPARSECORE_DEVICE void widen_all(const From (&in)[S], Dtype from, float (&out)[S]) {
  if (from == Dtype::f16) {  // the same for all
#pragma unroll
    for (int j = 0; j < S; ++j) out[j] = widen_as(in[j], Dtype::f16);
  } else {
#pragma unroll
    for (int j = 0; j < S; ++j) out[j] = widen_as(in[j], Dtype::bf16);
  }
}

// `out` = row[column ..), those below k; the others keep what they are.
template <int S, class T>
SPARSECORE_DEVICE void load_columns(const T* row, int64_t column, int64_t k, T (&out)[S]) {
  constexpr int P = 16 / sizeof(T) < S ? 16 / sizeof(T) : S;
  if (column + S <= k && pack_aligned<P>(row + column)) {
#pragma unroll
    for (int j = 0; j < S; j += P) {
      const Pack<T, P> pack = load_pack<P>(row + column + j);
#pragma unroll
      for (int i = 0; i < P; ++i) out[j + i] = pack.at[i];
    }
  } else {
#pragma unroll
    for (int j = 0; j < S; ++j)
      if (column + j < k) out[j] = row[column + j];
  }
}

// What a lane keeps of S columns.
template <int n, int m, int S>
struct Kept {
  float values[S / m * n];
  unsigned code;  // of S / m groups
};

template <int n, int m, int S, class From>
SPARSECORE_DEVICE Kept<n, m, S> choose_columns(const From* row, Dtype from, const uint8_t* mask, int64_t column,
                                               int64_t k) {
  constexpr int kCode = static_cast<int>(nm_code(n, m)), kField = static_cast<int>(nm_field(m));
  From read[S] = {};
  uint8_t selected[S] = {};
  load_columns(row, column, k, read);
  if (mask) load_columns(mask, column, k, selected);
  float v[S];
  widen_all(read, from, v);
  int keys[S];  // a column past the row comes after all others
#pragma unroll
  for (int j = 0; j < S; ++j) {
    if (mask && !selected[j]) v[j] = 0.0f;
    keys[j] = column + j >= k ? -1 : mask ? selected[j] != 0 : static_cast<int>(key(v[j]));
  }
  Kept<n, m, S> kept{};
#pragma unroll
  for (int g = 0; g < S / m; ++g) {
    int ranks[m] = {};
    int population = 0;
#pragma unroll
    for (int j = 1; j < m; ++j)
#pragma unroll
      for (int i = 0; i < j; ++i) {
        const bool later = keys[g * m + j] > keys[g * m + i];
        ranks[i] += later;
        ranks[j] += !later;
      }
#pragma unroll
    for (int j = 0; j < m; ++j) population += selected[g * m + j] != 0;
    unsigned code = 0;
    int at = 0;
#pragma unroll
    for (int j = 0; j < m; ++j) {
      const bool taken = ranks[j] < n;
#pragma unroll
      for (int r = 0; r < n; ++r)
        if (taken && at == r) {
          kept.values[g * n + r] = population > n ? __uint_as_float(0x7fffffffu) : v[g * m + j];
          if constexpr (!nm_is_mask(n, m)) code |= static_cast<unsigned>(j) << r * kField;
        }
      if constexpr (nm_is_mask(n, m)) code |= static_cast<unsigned>(taken) << j;
      at += taken;
    }
    kept.code |= code << g * kCode;
  }
  return kept;
}

template <int n, int m, class From>
__global__ void __launch_bounds__(kWarps* kLanes) nm_compress_kernel(Args a, int64_t rows) {
  constexpr int S = m > 8 ? m : 8, kBits = static_cast<int>(nm_code(n, m)) * S / m, Q = S / m * n;
  static_assert(kBits == 4 || kBits == 8);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (row >= rows) return;  // the whole warp
  const NmView view = a.view();
  const From* const w = static_cast<const From*>(a.w) + row * a.stride;
  const uint8_t* const mask = a.mask ? a.mask + row * a.mask_stride : nullptr;
  uint8_t* const codes = static_cast<uint8_t*>(a.positions) + row * view.row_bytes();
  const int64_t columns = nm_words(a.k) * kNmColumns, first = row * view.row_values();
  float scale = 0.0f;
  for (int pass = a.scales ? 0 : 1; pass < 2; ++pass) {
    uint32_t largest = 0;
#pragma unroll 2
    for (int64_t begin = 0; begin < columns; begin += S * kLanes) {
      const int64_t column = begin + lane_index() * S;
      const bool inside = column < columns;
      const Kept<n, m, S> kept = choose_columns<n, m, S>(w, a.from, mask, inside ? column : a.k, a.k);
      if (pass == 0) {
#pragma unroll
        for (int q = 0; q < Q; ++q) {
          const uint32_t here = magnitude(kept.values[q]);
          largest = here > largest ? here : largest;
        }
        continue;
      }
      if (inside) store_values<Q>(a.values, a.to, first + column / m * n, kept.values, scale);
      unsigned code = kept.code;
      if constexpr (kBits == 4) code |= warp_shuffle(code, (lane_index() + 1) % kLanes) << 4;
      if (inside && (kBits == 8 || lane_index() % 2 == 0)) codes[column / S * kBits / 8] = static_cast<uint8_t>(code);
    }
    if (pass == 0) {
      scale = row_scale(~warp_least(~largest), largest_code(a.to));
      if (lane_index() == 0) a.scales[row] = scale;
    }
  }
}

// The digit, of 256 whose counts are in shared memory, within which the `left` largest end; `left` becomes how many
// are taken of it. Thread t has digit 255 - t.
SPARSECORE_DEVICE unsigned last_digit(const int* counts, int64_t& left) {
  __shared__ unsigned digit;
  __shared__ int64_t remaining;
  const int64_t here = counts[255 - threadIdx.x];
  int64_t total;
  const int64_t before = block_exclusive_sum(here, total);
  if (before < left && left <= before + here) {
    digit = 255 - threadIdx.x;
    remaining = left - before;
  }
  block_sync();
  left = remaining;
  return digit;
}

template <class From>
__global__ void __launch_bounds__(kBlock) fan_in_compress_kernel(Args a) {
  __shared__ int counts[256];
  const int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const From* const w = static_cast<const From*>(a.w) + row * a.stride;
  const uint8_t* const mask = a.mask ? a.mask + row * a.mask_stride : nullptr;
  const auto key_at = [&](int64_t c) -> uint32_t { return mask ? mask[c] != 0 : key(widen_as(w[c], a.from)); };

  int64_t left = a.keep;  // of the columns whose key is `least`, the lowest so many
  uint32_t least = 0, known = 0;
  bool overfull = false;
  if (mask) {
    int64_t mine = 0, selected;
    for (int64_t c = thread; c < a.k; c += kBlock) mine += mask[c] != 0;
    block_exclusive_sum(mine, selected);
    overfull = selected > a.keep;
    if (overfull) least = 1;
    else left -= selected;
  } else if (a.keep > 0) {
    for (int shift = 24; shift >= 0; shift -= 8) {
      counts[thread] = 0;
      block_sync();
      for (int64_t begin = 0; begin < a.k; begin += kBlock) {
        const int64_t c = begin + thread;
        const uint32_t here = c < a.k ? key_at(c) : 0;
        const int digit = c < a.k && (here & known) == least ? static_cast<int>(here >> shift & 255) : -1;
        const unsigned same = warp_match(digit);  // exponents are few: a count for each lane would queue
        if (digit >= 0 && (same & ((1u << lane_index()) - 1)) == 0) atomic_add(counts + digit, __popc(same));
      }
      block_sync();
      least |= last_digit(counts, left) << shift;
      known |= 255u << shift;
      block_sync();
    }
  }

  uint32_t largest = 0;
  int64_t sure_before = 0, ties_before = 0;
  for (int64_t begin = 0; begin < a.k && a.keep > 0; begin += kBlock) {
    const int64_t c = begin + thread;
    const uint32_t here = c < a.k ? key_at(c) : 0;
    const bool sure = c < a.k && here > least, tie = c < a.k && here == least;
    int64_t both;
    const int64_t before = block_exclusive_sum(static_cast<int64_t>(sure) | static_cast<int64_t>(tie) << 32, both);
    const int64_t ties = ties_before + (before >> 32),
                  at = sure_before + (before & 0xffffffff) + (ties < left ? ties : left);
    if (sure || (tie && ties < left)) {
      if (a.index == Dtype::i16) static_cast<int16_t*>(a.positions)[row * a.keep + at] = static_cast<int16_t>(c);
      else static_cast<int32_t*>(a.positions)[row * a.keep + at] = static_cast<int32_t>(c);
      const uint32_t bits = mask && !mask[c] ? 0 : magnitude(widen_as(w[c], a.from));
      largest = bits > largest ? bits : largest;
    }
    sure_before += both & 0xffffffff;
    ties_before += both >> 32;
  }
  float scale = 0.0f;
  if (a.scales) {
    scale = row_scale(overfull ? kNan : ~block_least(~largest), largest_code(a.to));
    if (thread == 0) a.scales[row] = scale;
  }
  block_sync();  // positions are written
  const NmView view = a.view();
  for (int64_t p = row * a.keep + thread; p < (row + 1) * a.keep; p += kBlock) {
    const int64_t c = view.column(p);
    const float v = overfull ? __uint_as_float(0x7fffffffu) : mask && !mask[c] ? 0.0f : widen_as(w[c], a.from);
    store_values<1>(a.values, a.to, p, {v}, scale);
  }
}

template <class From>
const char* launch_from(const Args& a, int64_t rows, void* stream) {
  const bool packed = a.index == Dtype::i8;
  const int64_t blocks = packed ? (rows + kWarps - 1) / kWarps : rows;
  if (blocks > 0x7fffffff) return "w: more rows than a grid holds";
  const dim3 grid(static_cast<unsigned>(blocks));
  if (!packed) return cuda::launch(fan_in_compress_kernel<From>, {grid, dim3(kBlock), 0, stream}, a);
  return nm_visit(a.keep, a.group, [&]<int n, int m>() {
    return cuda::launch(nm_compress_kernel<n, m, From>, {grid, dim3(kWarps * kLanes), 0, stream}, a, rows);
  });
}

}  // namespace

const char* launch(const Args& a, int64_t rows, void* stream) {
  return a.from == Dtype::f32 ? launch_from<float>(a, rows, stream) : launch_from<uint16_t>(a, rows, stream);
}

}  // namespace sparsecore::nm_compress
