// SPDX-License-Identifier: Apache-2.0
// spmm_nm on AVX2: the positions of 8 columns, a byte or half of one, pick a shuffle from a table, which spreads their
// values over fp32 lanes with zeros between. Values of 8 and 16 bits go to the top of their lanes in one vpshufb. As a
// bitmap's, without its count of the bits before: the values of every step have a place of their own.
#include "cpu/simd/vec_avx2.h"
#include "ops/spmm_nm/spmm_nm.h"

namespace sparsecore::spmm_nm {
namespace {

constexpr int64_t kWordRows = 16;
constexpr int rows_together(int m) { return m == 1 ? 1 : 2; }

// Bits of positions that 8 columns have.
template <int n, int m>
constexpr int kStepBits = static_cast<int>(nm_code(n, m) * 8 / m);

// Rank, among the values of 8 columns, of column j under positions `code`; -1: it is not stored.
template <int n, int m>
constexpr int rank_of(unsigned code, int j) {
  if (nm_is_mask(n, m)) return code >> j & 1 ? __builtin_popcount(code & ((1u << j) - 1)) : -1;
  for (int r = 0; r < n; ++r) {
    const unsigned field = code >> (j / m * nm_code(n, m) + r * nm_field(m));
    if (static_cast<int>(field & (m - 1)) == j % m) return j / m * n + r;
  }
  return -1;
}

// An entry of `width` T for every code; set(entry, j, rank) for every stored column j over `empty`.
template <int n, int m, class T, int width>
struct Table {
  alignas(64) T at[1 << kStepBits<n, m>][width];
  template <class Set>
  constexpr Table(T empty, Set set) : at() {
    for (unsigned code = 0; code < 1u << kStepBits<n, m>; ++code) {
      for (int j = 0; j < width; ++j) at[code][j] = empty;
      for (int j = 0; j < 8; ++j)
        if (const int rank = rank_of<n, m>(code, j); rank >= 0) set(at[code], j, static_cast<unsigned>(rank));
    }
  }
  SPARSECORE_INLINE const __m128i* entry(unsigned code) const { return reinterpret_cast<const __m128i*>(at[code]); }
};
SPARSECORE_INLINE __m256i load256(const __m128i* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }

struct F32 {
  using Element = float;
  static constexpr float unit = 1.0f;
  // Indices of vpermps, with all ones beside them to clear the empty lanes.
  template <int n, int m>
  struct Tables {
    static constexpr Table<n, m, uint32_t, 8> rank{0, [](uint32_t* e, int j, unsigned r) { e[j] = r; }};
    static constexpr Table<n, m, uint32_t, 8> live{0, [](uint32_t* e, int j, unsigned) { e[j] = ~0u; }};
  };
  template <int n, int m>
  SPARSECORE_INLINE static __m256 spread(unsigned code, const float* p) {
    using T = Tables<n, m>;
    const __m256i v = _mm256_permutevar8x32_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
                                                  load256(T::rank.entry(code)));
    return _mm256_castsi256_ps(_mm256_and_si256(v, load256(T::live.entry(code))));
  }
};

struct Bf16 {
  using Element = uint16_t;
  static constexpr float unit = 1.0f;
  template <int n, int m>
  struct Tables {  // controls of vpshufb; 0x80 gives a zero byte
    static constexpr Table<n, m, uint8_t, 32> top{0x80, [](uint8_t* e, int j, unsigned r) {
                                                    e[4 * j + 2] = static_cast<uint8_t>(2 * r);
                                                    e[4 * j + 3] = static_cast<uint8_t>(2 * r + 1);
                                                  }};
  };
  template <int n, int m>
  SPARSECORE_INLINE static __m256 spread(unsigned code, const uint16_t* p) {
    const __m256i eight = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(eight, load256(Tables<n, m>::top.entry(code))));
  }
};

struct F16 {
  using Element = uint16_t;
  static constexpr float unit = 1.0f;
  template <int n, int m>
  struct Tables {
    static constexpr Table<n, m, uint8_t, 16> in{0x80, [](uint8_t* e, int j, unsigned r) {
                                                   e[2 * j] = static_cast<uint8_t>(2 * r);
                                                   e[2 * j + 1] = static_cast<uint8_t>(2 * r + 1);
                                                 }};
  };
  template <int n, int m>
  SPARSECORE_INLINE static __m256 spread(unsigned code, const uint16_t* p) {
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtph_ps(_mm_shuffle_epi8(eight, _mm_load_si128(Tables<n, m>::in.entry(code))));
  }
};

// A value in the top byte converts to value * 2^24, exactly.
struct I8 {
  using Element = int8_t;
  static constexpr float unit = 0x1p-24f;
  template <int n, int m>
  struct Tables {
    static constexpr Table<n, m, uint8_t, 32> top{
        0x80, [](uint8_t* e, int j, unsigned r) { e[4 * j + 3] = static_cast<uint8_t>(r); }};
  };
  template <int n, int m>
  SPARSECORE_INLINE static __m256 spread(unsigned code, const int8_t* p) {
    int64_t eight;
    std::memcpy(&eight, p, 8);
    return _mm256_cvtepi32_ps(_mm256_shuffle_epi8(_mm256_set1_epi64x(eight), load256(Tables<n, m>::top.entry(code))));
  }
};

struct Lanes : F32x4 {
  SPARSECORE_INLINE static __m128 gather(const float* x, const int16_t* cols) {
    uint64_t c;
    std::memcpy(&c, cols, 8);
    __m128 out = _mm_load_ss(x + (c & 0xffff));
    out = _mm_insert_ps(out, _mm_load_ss(x + (c >> 16 & 0xffff)), 0x10);
    out = _mm_insert_ps(out, _mm_load_ss(x + (c >> 32 & 0xffff)), 0x20);
    return _mm_insert_ps(out, _mm_load_ss(x + (c >> 48)), 0x30);
  }
};

template <int n, int m, class V>
struct Word {
  using Element = typename V::Element;
  static constexpr int steps = 8, registers = 1;
  static constexpr bool interleaved = false, exact = false;
  static constexpr float unit = V::unit;
  using Codes = uint64_t;
  struct X {
    __m256 at;
  };
  struct Step {
    __m256 v[1];
  };
  SPARSECORE_INLINE static uint64_t open(const uint8_t* codes) { return nm_word<n, m>(codes); }
  SPARSECORE_INLINE static X load_x(const float* x, int s) { return {Wide::pin(_mm256_loadu_ps(x + 8 * s))}; }
  SPARSECORE_INLINE static Step step(uint64_t word, const Element* p, int s) {
    constexpr int bits = kStepBits<n, m>;
    return {{V::template spread<n, m>(static_cast<unsigned>(word >> bits * s & ((1 << bits) - 1)), p + s * 8 * n / m)}};
  }
  SPARSECORE_INLINE static __m256 mul(const X& x, const Step&, int) { return x.at; }
};

}  // namespace
}  // namespace sparsecore::spmm_nm

#include "ops/spmm_nm/spmm_nm_simd.h"

namespace sparsecore::spmm_nm {
extern const Kernel kernel_avx2;
const Kernel kernel_avx2 = {"spmm_nm_avx2", cpu::Isa::avx2, plan, pack, run};
}  // namespace sparsecore::spmm_nm
