// SPDX-License-Identifier: Apache-2.0
// spgemm on AVX-512 with VBMI2: columns by vpcompressb of 0..63, words with columns by vpcompressd, dense
// sums gathered; thick words spread a row of B by expanding loads, 16 (8 of fp64) columns an addition.
// gcc 12 takes the undefined lanes of its own intrinsics for a slip.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "ops/spgemm/spgemm_simd.h"

namespace sparsecore::spgemm {
namespace {

alignas(64) constexpr struct Iota {
  uint8_t at[64];
  constexpr Iota() : at() {
    for (int i = 0; i < 64; ++i) at[i] = static_cast<uint8_t>(i);
  }
} kIota;

inline __mmask16 first16(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1); }
inline __mmask8 first8(int64_t count) { return static_cast<__mmask8>(count >= 8 ? 0xff : (1 << count) - 1); }

// Bitonic sort of 32-bit numbers, 16 a register (Batcher 1968). A lane of `up` keeps the larger of it and its partner.
inline __m512i exchange(__m512i v, __m512i partner, __mmask16 up) {
  return _mm512_mask_max_epi32(_mm512_min_epi32(v, partner), up, v, partner);
}
inline __m512i reversed(__m512i v) {
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), v);
}
inline __m512i merge8(__m512i v) {  // each half falls after it rose
  v = exchange(v, _mm512_shuffle_i32x4(v, v, 0xb1), 0xf0f0);
  v = exchange(v, _mm512_shuffle_epi32(v, static_cast<_MM_PERM_ENUM>(0x4e)), 0xcccc);
  return exchange(v, _mm512_shuffle_epi32(v, static_cast<_MM_PERM_ENUM>(0xb1)), 0xaaaa);
}
inline __m512i sort16(__m512i v) {
  v = exchange(v, _mm512_shuffle_epi32(v, static_cast<_MM_PERM_ENUM>(0xb1)), 0xaaaa);
  v = exchange(v, _mm512_shuffle_epi32(v, static_cast<_MM_PERM_ENUM>(0x1b)), 0xcccc);
  v = exchange(v, _mm512_shuffle_epi32(v, static_cast<_MM_PERM_ENUM>(0xb1)), 0xaaaa);
  const __m512i across = _mm512_shuffle_epi32(v, static_cast<_MM_PERM_ENUM>(0x1b));
  v = exchange(v, _mm512_shuffle_i32x4(across, across, 0xb1), 0xf0f0);
  v = exchange(v, _mm512_shuffle_epi32(v, static_cast<_MM_PERM_ENUM>(0x4e)), 0xcccc);
  v = exchange(v, _mm512_shuffle_epi32(v, static_cast<_MM_PERM_ENUM>(0xb1)), 0xaaaa);
  return merge8(exchange(v, reversed(v), 0xff00));
}
template <int kCount>
[[gnu::always_inline]] inline void merge(__m512i* v) {
  if constexpr (kCount == 1) {
    v[0] = merge8(exchange(v[0], _mm512_shuffle_i32x4(v[0], v[0], 0x4e), 0xff00));
  } else {
#pragma GCC unroll 4
    for (int i = 0; i < kCount / 2; ++i) {
      const __m512i low = _mm512_min_epi32(v[i], v[i + kCount / 2]);
      v[i + kCount / 2] = _mm512_max_epi32(v[i], v[i + kCount / 2]);
      v[i] = low;
    }
    merge<kCount / 2>(v);
    merge<kCount / 2>(v + kCount / 2);
  }
}
template <int kCount>
[[gnu::always_inline]] inline void sort(__m512i* v) {
  if constexpr (kCount == 1) {
    v[0] = sort16(v[0]);
  } else if constexpr (kCount == 3) {  // of 4, the last all largest
    sort<2>(v);
    const __m512i other = reversed(sort16(v[2]));
    v[2] = _mm512_max_epi32(v[1], other);
    v[1] = _mm512_min_epi32(v[1], other);
    merge<2>(v);
    merge<1>(v + 2);
  } else {
    sort<kCount / 2>(v);
    sort<kCount / 2>(v + kCount / 2);
    __m512i other[kCount / 2];  // the second half from its end
#pragma GCC unroll 4
    for (int i = 0; i < kCount / 2; ++i) other[i] = reversed(v[kCount - 1 - i]);
#pragma GCC unroll 4
    for (int i = 0; i < kCount / 2; ++i) {
      v[i + kCount / 2] = _mm512_max_epi32(v[i], other[i]);
      v[i] = _mm512_min_epi32(v[i], other[i]);
    }
    merge<kCount / 2>(v);
    merge<kCount / 2>(v + kCount / 2);
  }
}

struct Avx512Lanes : PlainLanes {
  // Expanding loads against one sum at a time, ns a product at 6, 13 and 32 bits a word: fp32 2.2 and 2.0,
  // 1.1 and 1.9, 0.4 and 1.3; fp64 3.4 and 2.1, 2.2 and 2.6, 0.7 and 1.4.
  static constexpr int64_t thick_bits(Dtype d) { return d == Dtype::f32 ? 8 : d == Dtype::f64 ? 12 : kNeverThick; }
  template <class T>
  static constexpr bool kThickens = kReal<T>;

  static void store(int32_t* out, int64_t count, __m128i at, int64_t base) {
    const __m512i columns = _mm512_add_epi32(_mm512_cvtepu8_epi32(at), _mm512_set1_epi32(static_cast<int>(base)));
    _mm512_mask_storeu_epi32(out, first16(count), columns);
  }
  static void store(int64_t* out, int64_t count, __m128i at, int64_t base) {
    const __m512i start = _mm512_set1_epi64(base);
    const __mmask16 live = first16(count);
    _mm512_mask_storeu_epi64(out, static_cast<__mmask8>(live), _mm512_add_epi64(_mm512_cvtepu8_epi64(at), start));
    _mm512_mask_storeu_epi64(out + 8, static_cast<__mmask8>(live >> 8),
                             _mm512_add_epi64(_mm512_cvtepu8_epi64(_mm_unpackhi_epi64(at, at)), start));
  }
  template <class Index>
  static void columns(uint64_t bits, int64_t first, Index* out) {
    const __m512i at = _mm512_maskz_compress_epi8(bits, _mm512_load_si512(kIota.at));
    const int64_t count = bit_count(bits);
    store(out, count, _mm512_castsi512_si128(at), first);
    if (count <= 16) return;
    alignas(64) uint8_t bytes[64];
    _mm512_store_si512(bytes, at);
    for (int64_t j = 16; j < count; j += 16)
      store(out + j, count - j, _mm_load_si128(reinterpret_cast<const __m128i*>(bytes + j)), first);
  }

  static int64_t touched(const uint64_t* bits, int64_t count, int32_t* list) {
    __m256i at = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    int64_t found = 0;
    for (int64_t w = 0; w < count; w += 8, at = _mm256_add_epi32(at, _mm256_set1_epi32(8))) {
      const __m512i words = _mm512_maskz_loadu_epi64(first8(count - w), bits + w);
      const __mmask8 live = _mm512_test_epi64_mask(words, words);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(list + found), _mm256_maskz_compress_epi32(live, at));
      found += bit_count(live);
    }
    return found;
  }

  // 16 columns as int32, zeros past `live`.
  static __m512i load16(const int32_t* col, __mmask16 live) { return _mm512_maskz_loadu_epi32(live, col); }
  static __m512i load16(const int64_t* col, __mmask16 live) {
    const __m256i low = _mm512_cvtepi64_epi32(_mm512_maskz_loadu_epi64(static_cast<__mmask8>(live), col));
    const __m256i high = _mm512_cvtepi64_epi32(_mm512_maskz_loadu_epi64(static_cast<__mmask8>(live >> 8), col + 8));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  using PlainLanes::stage;
  template <class Index>
  static void stage(const Index* col, const None*, None, int64_t count, int32_t* columns, None*, None*) {
    for (int64_t j = 0; j < count; j += 16) _mm512_storeu_si512(columns + j, load16(col + j, first16(count - j)));
  }
  template <class Index>
  static void stage(const Index* col, const float* values, float a, int64_t count, int32_t* columns, float* factors,
                    float* elements) {
    for (int64_t j = 0; j < count; j += 16) {
      const __mmask16 live = first16(count - j);
      _mm512_storeu_si512(columns + j, load16(col + j, live));
      _mm512_storeu_ps(factors + j, _mm512_set1_ps(a));
      _mm512_storeu_ps(elements + j, _mm512_maskz_loadu_ps(live, values + j));
    }
  }
  template <class Index>
  static void stage(const Index* col, const double* values, double a, int64_t count, int32_t* columns, double* factors,
                    double* elements) {
    for (int64_t j = 0; j < count; j += 16) {
      const __mmask16 live = first16(count - j);
      _mm512_storeu_si512(columns + j, load16(col + j, live));
      for (int h = 0; h < 2; ++h) {
        _mm512_storeu_pd(factors + j + 8 * h, _mm512_set1_pd(a));
        _mm512_storeu_pd(elements + j + 8 * h,
                         _mm512_maskz_loadu_pd(static_cast<__mmask8>(live >> 8 * h), values + j + 8 * h));
      }
    }
  }

  using PlainLanes::take;
  // sums[c] += a * the next value, for each bit c, rising. Returns past the values taken. The word is walked to its
  // end, for whether bits are left is a branch mispredicted: 0.93 to 0.96 of the time so in FEM matrices.
  static const float* add(float* sums, uint64_t bits, const float* values, float a) {
    const __m512 factor = _mm512_set1_ps(a);
#pragma GCC unroll 4
    for (int h = 0; h < 4; ++h, bits >>= 16, sums += 16) {
      const __mmask16 m = static_cast<__mmask16>(bits);
      const __m512 v = _mm512_maskz_expandloadu_ps(m, values);
      _mm512_storeu_ps(sums, _mm512_mask3_fmadd_ps(v, factor, _mm512_loadu_ps(sums), m));
      values += bit_count(m);
    }
    return values;
  }
  static const double* add(double* sums, uint64_t bits, const double* values, double a) {
    const __m512d factor = _mm512_set1_pd(a);
#pragma GCC unroll 8
    for (int h = 0; h < 8; ++h, bits >>= 8, sums += 8) {
      const __mmask8 m = static_cast<__mmask8>(bits);
      const __m512d v = _mm512_maskz_expandloadu_pd(m, values);
      _mm512_storeu_pd(sums, _mm512_mask3_fmadd_pd(v, factor, _mm512_loadu_pd(sums), m));
      values += bit_count(m);
    }
    return values;
  }

  static float* take(float* sums, uint64_t bits, float* out) {
    for (; bits != 0; bits >>= 16, sums += 16) {
      const __mmask16 m = static_cast<__mmask16>(bits);
      const int64_t count = bit_count(m);
      _mm512_mask_storeu_ps(out, first16(count), _mm512_maskz_compress_ps(m, _mm512_loadu_ps(sums)));
      _mm512_storeu_ps(sums, _mm512_setzero_ps());
      out += count;
    }
    return out;
  }
  static double* take(double* sums, uint64_t bits, double* out) {
    for (; bits != 0; bits >>= 8, sums += 8) {
      const __mmask8 m = static_cast<__mmask8>(bits);
      const int64_t count = bit_count(m);
      _mm512_mask_storeu_pd(out, first8(count), _mm512_maskz_compress_pd(m, _mm512_loadu_pd(sums)));
      _mm512_storeu_pd(sums, _mm512_setzero_pd());
      out += count;
    }
    return out;
  }

  // A row of so few products needs no sums in memory: they are sorted by column << 6 | place, and equal columns, now side
  // by side, are added up in their order, all columns' second products at once, then all third ones. Against lists and sums in memory, fp32, ns a row at 34
  // products 242 and 143, at 7 138 and 57; fp64 214 and 172, 140 and 69.
  static constexpr int64_t kMerged = 64;
  template <class T, class Index>
  static int64_t merge(const int32_t* columns, const T* factors, const T* elements, int64_t count, Index* col, T* out) {
    if (count <= 16) return merge_in<1>(columns, factors, elements, count, col, out);
    if (count <= 32) return merge_in<2>(columns, factors, elements, count, col, out);
    if (count <= 48) return merge_in<3>(columns, factors, elements, count, col, out);
    return merge_in<4>(columns, factors, elements, count, col, out);
  }
  template <int kRegisters, class T, class Index>
  static int64_t merge_in(const int32_t* columns, const T* factors, const T* elements, int64_t count, Index* col,
                          T* out) {
    const __m512i iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i keys[kRegisters];
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) {
      const __m512i places = _mm512_add_epi32(iota, _mm512_set1_epi32(16 * i));
      keys[i] = _mm512_mask_or_epi32(_mm512_set1_epi32(INT32_MAX), live16(count - 16 * i),
                                     _mm512_slli_epi32(_mm512_loadu_si512(columns + 16 * i), 6), places);
    }
    sort<kRegisters>(keys);
    const uint64_t live = count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
    uint64_t same = 0;  // as the one before
    __m512i before = _mm512_set1_epi32(-1), at[kRegisters];
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) {
      at[i] = _mm512_srli_epi32(keys[i], 6);
      const uint64_t equal = _mm512_cmpeq_epi32_mask(at[i], _mm512_alignr_epi32(at[i], before, 15));
      same |= equal << (16 * i);
      before = at[i];
    }
    same &= live;
    const uint64_t last = live & ~(same >> 1);
    int64_t found = 0;
    if constexpr (kValues<T>) {
      constexpr int kLanes = 64 / sizeof(T), kSums = kRegisters * 16 / kLanes;
      typename Vector<T>::Type f[kSums], e[kSums], sums[kSums];
      gather_staged<kRegisters>(factors, keys, f);
      gather_staged<kRegisters>(elements, keys, e);
#pragma GCC unroll 8
      for (int i = 0; i < kSums; ++i) sums[i] = first_sum(f[i], e[i]);
      for (uint64_t next = same & ~same << 1; next != 0; next = same & next << 1) {
#pragma GCC unroll 8
        for (int i = kSums - 1; i >= 0; --i)
          sums[i] = next_sum(f[i], e[i], sums[i], i > 0 ? sums[i - 1] : sums[i], next >> (kLanes * i));
      }
#pragma GCC unroll 8
      for (int i = 0; i < kSums; ++i) {
        const uint64_t here = last >> (kLanes * i) & ((1u << kLanes) - 1);
        put_sums(sums[i], here, out + found);
        found += bit_count(here);
      }
      found = 0;
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) {
      const __mmask16 here = static_cast<__mmask16>(last >> (16 * i));
      const int64_t more = bit_count(here);
      put(_mm512_maskz_compress_epi32(here, at[i]), more, col + found);
      found += more;
    }
    return found;
  }
  static __mmask16 live16(int64_t count) { return count > 0 ? first16(count) : 0; }
  template <class T>
  struct Vector;

  // out[j] = staged[low 6 bits of keys], all lanes.
  template <int kRegisters>
  static void gather_staged(const float* staged, const __m512i* keys, __m512* out) {
    __m512 table[kRegisters];
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) table[i] = _mm512_loadu_ps(staged + 16 * i);
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) {
      if constexpr (kRegisters == 1) {
        out[i] = _mm512_permutexvar_ps(keys[i], table[0]);
      } else if constexpr (kRegisters == 2) {
        out[i] = _mm512_permutex2var_ps(table[0], keys[i], table[1]);
      } else {
        out[i] = _mm512_mask_blend_ps(_mm512_test_epi32_mask(keys[i], _mm512_set1_epi32(32)),
                                      _mm512_permutex2var_ps(table[0], keys[i], table[1]),
                                      _mm512_permutex2var_ps(table[2], keys[i], table[kRegisters - 1]));
      }
    }
  }
  template <int kRegisters>
  static void gather_staged(const double* staged, const __m512i* keys, __m512d* out) {
#pragma GCC unroll 8
    for (int i = 0; i < 2 * kRegisters; ++i) {
      const __m512i at = _mm512_cvtepi32_epi64(i % 2 == 0 ? _mm512_castsi512_si256(keys[i / 2])
                                                          : _mm512_extracti64x4_epi64(keys[i / 2], 1));
      __m512d found[kRegisters];  // of each 16 staged ones
#pragma GCC unroll 4
      for (int j = 0; j < kRegisters; ++j)
        found[j] = _mm512_permutex2var_pd(_mm512_loadu_pd(staged + 16 * j), at, _mm512_loadu_pd(staged + 16 * j + 8));
      if constexpr (kRegisters > 1) {
        const __mmask8 odd = _mm512_test_epi64_mask(at, _mm512_set1_epi64(16));
#pragma GCC unroll 2
        for (int j = 0; j + 1 < kRegisters; j += 2) found[j] = _mm512_mask_blend_pd(odd, found[j], found[j + 1]);
        if constexpr (kRegisters > 2)
          found[0] = _mm512_mask_blend_pd(_mm512_test_epi64_mask(at, _mm512_set1_epi64(32)), found[0], found[2]);
      }
      out[i] = found[0];
    }
  }
  static __m512 first_sum(__m512 f, __m512 e) { return _mm512_fmadd_ps(f, e, _mm512_setzero_ps()); }
  static __m512d first_sum(__m512d f, __m512d e) { return _mm512_fmadd_pd(f, e, _mm512_setzero_pd()); }
  // Where `live`, f e + the sum of the lane before.
  static __m512 next_sum(__m512 f, __m512 e, __m512 sums, __m512 before, uint64_t live) {
    const __mmask16 m = static_cast<__mmask16>(live);
    const __m512i own = _mm512_castps_si512(sums);
    return _mm512_mask3_fmadd_ps(
        f, e, _mm512_castsi512_ps(_mm512_mask_alignr_epi32(own, m, own, _mm512_castps_si512(before), 15)), m);
  }
  static __m512d next_sum(__m512d f, __m512d e, __m512d sums, __m512d before, uint64_t live) {
    const __mmask8 m = static_cast<__mmask8>(live);
    const __m512i own = _mm512_castpd_si512(sums);
    return _mm512_mask3_fmadd_pd(
        f, e, _mm512_castsi512_pd(_mm512_mask_alignr_epi64(own, m, own, _mm512_castpd_si512(before), 7)), m);
  }
  static void put_sums(__m512 sums, uint64_t live, float* out) {
    const __m512 kept = _mm512_maskz_compress_ps(static_cast<__mmask16>(live), sums);
    _mm512_mask_storeu_ps(out, first16(bit_count(live)), kept);
  }
  static void put_sums(__m512d sums, uint64_t live, double* out) {
    const __m512d kept = _mm512_maskz_compress_pd(static_cast<__mmask8>(live), sums);
    _mm512_mask_storeu_pd(out, first8(bit_count(live)), kept);
  }

  // A row's list, sorted in registers: fp32, 34 products a row, 242 ns, and 438 by scanning the words.
  static constexpr int64_t kListed = 256, kSorted = 128;
  template <class T, class Index>
  static void unlist(const int32_t* list, int64_t count, bool sorted, T* sums, Index* col, T* out) {
    if (count <= 16) unlist_in<1>(list, count, sorted, sums, col, out);
    else if (count <= 32) unlist_in<2>(list, count, sorted, sums, col, out);
    else if (count <= 64) unlist_in<4>(list, count, sorted, sums, col, out);
    else unlist_in<8>(list, count, sorted, sums, col, out);
  }
  template <int kRegisters, class T, class Index>
  static void unlist_in(const int32_t* list, int64_t count, bool sorted, T* sums, Index* col, T* out) {
    __m512i keys[kRegisters];
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i)
      keys[i] = _mm512_mask_loadu_epi32(_mm512_set1_epi32(INT32_MAX), live16(count - 16 * i), list + 16 * i);
    if (sorted) sort<kRegisters>(keys);
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i) {
      const int64_t left = count - 16 * i;
      if (left <= 0) break;
      put(keys[i], left, col + 16 * i);
      if constexpr (kValues<T>) take16(sums, keys[i], left, out + 16 * i);
    }
  }
  static void put(__m512i columns, int64_t count, int32_t* col) {
    _mm512_mask_storeu_epi32(col, first16(count), columns);
  }
  static void put(__m512i columns, int64_t count, int64_t* col) {
    const __mmask16 live = first16(count);
    _mm512_mask_storeu_epi64(col, static_cast<__mmask8>(live), _mm512_cvtepi32_epi64(_mm512_castsi512_si256(columns)));
    _mm512_mask_storeu_epi64(col + 8, static_cast<__mmask8>(live >> 8),
                             _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(columns, 1)));
  }
  // Moves the sums of up to 16 columns, one by one: a gather took 10 to 11 ns whatever its lanes (Ice Lake, whose
  // microcode guards them). franz6, rows of 33 to 256 products: -8 % in fp32 and fp64.
  template <class T>
  static void take16(T* sums, __m512i at, int64_t count, T* out) {
    alignas(64) int32_t columns[16];
    _mm512_store_si512(columns, at);
    PlainLanes::take(sums, 0, columns, count < 16 ? count : 16, out);
  }
};

template <>
struct Avx512Lanes::Vector<float> {
  using Type = __m512;
};
template <>
struct Avx512Lanes::Vector<double> {
  using Type = __m512d;
};

}  // namespace

extern const Kernel kernel_avx512;
const Kernel kernel_avx512 = kernel_of<Avx512Lanes>("spgemm_avx512", cpu::Isa::avx512);

}  // namespace sparsecore::spgemm
