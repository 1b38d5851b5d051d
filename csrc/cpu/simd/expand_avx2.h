// SPDX-License-Identifier: Apache-2.0
// Expansion on AVX2, which has no expand: a byte of bits picks a shuffle from a table, 8 columns a step. Values of
// 8 and 16 bits go from wherever they lie in the first 16 bytes straight to the top of their fp32 lanes, and to zero
// where nothing is stored, in one vpshufb.
//
// Expand<type> gives Element, lanes (columns a step), parts (registers a step), unit (of a sum), and
//   expand(p, word, s, out)   step s of a word of bits: the next values of p in the lanes of its columns, 0 in others;
//                             returns p past them. Reads a register from p on, whatever is set
//   load(p, out)              the same of a step whose bits are all set
// interleaved: lane l of part q is column l * parts + q of the step, else q * width + l.
#pragma once
#include "cpu/simd/vec_avx2.h"

namespace sparsecore {
namespace {

// Entry `m` of a table is for the byte of bits m. Rank: how many lower bits of m are set.
template <class T, int width>
struct Table {
  static constexpr int shift = sizeof(T) * width == 32 ? 5 : sizeof(T) * width == 16 ? 4 : 3;
  alignas(64) T at[256][width];
  // set(entry, j, rank) for every set bit j over `empty`.
  template <class Set>
  constexpr Table(T empty, Set set) : at() {
    for (unsigned m = 0; m < 256; ++m) {
      unsigned rank = 0;
      for (int j = 0; j < width; ++j) at[m][j] = empty;
      for (unsigned j = 0; j < 8; ++j)
        if (m >> j & 1) set(at[m], j, rank++);
    }
  }
};

// Controls of vpshufb; 0x80 gives a zero byte.
constexpr Table<uint8_t, 32> kTop16(0x80, [](uint8_t* e, unsigned j, unsigned rank) {
  e[4 * j + 2] = static_cast<uint8_t>(2 * rank);
  e[4 * j + 3] = static_cast<uint8_t>(2 * rank + 1);
});
constexpr Table<uint8_t, 32> kTop8(0x80, [](uint8_t* e, unsigned j, unsigned rank) {
  e[4 * j + 3] = static_cast<uint8_t>(rank);
});
constexpr Table<uint8_t, 16> kIn16(0x80, [](uint8_t* e, unsigned j, unsigned rank) {
  e[2 * j] = static_cast<uint8_t>(2 * rank);
  e[2 * j + 1] = static_cast<uint8_t>(2 * rank + 1);
});
// Indices of vpermps, with all ones beside them to clear the empty lanes.
constexpr Table<uint32_t, 8> kRank(0, [](uint32_t* e, unsigned j, unsigned rank) { e[j] = rank; });
constexpr Table<uint32_t, 8> kLive(0, [](uint32_t* e, unsigned j, unsigned) { e[j] = ~0u; });

// Byte s of a word as the offset of its entry: a rotate and a mask. Its population is the byte's.
template <int shift>
SPARSECORE_INLINE uint64_t entry_of(uint64_t word, int s) {
  const int right = (8 * s - shift) & 63;
  return (word >> right | word << ((64 - right) & 63)) & 255u << shift;
}
template <class T, int width>
SPARSECORE_INLINE const __m128i* entry_at(const Table<T, width>& table, uint64_t entry) {
  return reinterpret_cast<const __m128i*>(reinterpret_cast<const char*>(table.at) + entry);
}
SPARSECORE_INLINE __m256i load256(const __m128i* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }

struct Expand {
  static constexpr int lanes = 8, parts = 1;
  static constexpr float unit = 1.0f;
  static constexpr bool interleaved = false;
};

struct ExpandF32 : Expand {
  using Element = float;
  SPARSECORE_INLINE static const float* expand(const float* p, uint64_t word, int s, __m256* out) {
    const uint64_t entry = entry_of<5>(word, s);
    const __m256i lanes = _mm256_permutevar8x32_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
                                                      load256(entry_at(kRank, entry)));
    out[0] = _mm256_castsi256_ps(_mm256_and_si256(lanes, load256(entry_at(kLive, entry))));
    return p + __builtin_popcountll(entry);
  }
  SPARSECORE_INLINE static void load(const float* p, __m256* out) { out[0] = _mm256_loadu_ps(p); }
};

struct ExpandBf16 : Expand {
  using Element = uint16_t;
  SPARSECORE_INLINE static const uint16_t* expand(const uint16_t* p, uint64_t word, int s, __m256* out) {
    const uint64_t entry = entry_of<5>(word, s);
    const __m256i eight = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    out[0] = _mm256_castsi256_ps(_mm256_shuffle_epi8(eight, load256(entry_at(kTop16, entry))));
    return p + __builtin_popcountll(entry);
  }
  SPARSECORE_INLINE static void load(const uint16_t* p, __m256* out) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    out[0] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
  }
};

struct ExpandF16 : Expand {
  using Element = uint16_t;
  SPARSECORE_INLINE static const uint16_t* expand(const uint16_t* p, uint64_t word, int s, __m256* out) {
    const uint64_t entry = entry_of<4>(word, s);
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    out[0] = _mm256_cvtph_ps(_mm_shuffle_epi8(eight, _mm_load_si128(entry_at(kIn16, entry))));
    return p + __builtin_popcountll(entry);
  }
  SPARSECORE_INLINE static void load(const uint16_t* p, __m256* out) {
    out[0] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
};

// A value in the top byte converts to value * 2^24, exactly.
struct ExpandI8 : Expand {
  using Element = int8_t;
  static constexpr float unit = 0x1p-24f;
  SPARSECORE_INLINE static const int8_t* expand(const int8_t* p, uint64_t word, int s, __m256* out) {
    const uint64_t entry = entry_of<5>(word, s);
    int64_t eight;
    std::memcpy(&eight, p, 8);
    out[0] = _mm256_cvtepi32_ps(_mm256_shuffle_epi8(_mm256_set1_epi64x(eight), load256(entry_at(kTop8, entry))));
    return p + __builtin_popcountll(entry);
  }
};

}  // namespace
}  // namespace sparsecore
