// SPDX-License-Identifier: Apache-2.0
// Element types as kernels see them: a tag beside a raw pointer.
#pragma once
#include <cstdint>
#include <cstring>

// Functions that kernels call from headers. Forced inline, so that no ISA's object file holds a copy
// that the linker could hand to another ISA.
#if defined(__CUDACC__)
#define SPARSECORE_INLINE __host__ __device__ inline __attribute__((always_inline))
#else
#define SPARSECORE_INLINE inline __attribute__((always_inline))
#endif

namespace sparsecore {

enum class Dtype : int32_t { f32, bf16, f16, i8, i32, i64, f64, c64, c128, i16, f8 };

constexpr int64_t dtype_bytes(Dtype d) {
  switch (d) {
    case Dtype::f32:
    case Dtype::i32: return 4;
    case Dtype::bf16:
    case Dtype::f16:
    case Dtype::i16: return 2;
    case Dtype::i8:
    case Dtype::f8: return 1;
    case Dtype::i64:
    case Dtype::f64:
    case Dtype::c64: return 8;
    case Dtype::c128: return 16;
  }
  return 0;
}

constexpr const char* dtype_name(Dtype d) {
  switch (d) {
    case Dtype::f32: return "float32";
    case Dtype::bf16: return "bfloat16";
    case Dtype::f16: return "float16";
    case Dtype::i8: return "int8";
    case Dtype::i32: return "int32";
    case Dtype::i64: return "int64";
    case Dtype::f64: return "float64";
    case Dtype::c64: return "complex64";
    case Dtype::c128: return "complex128";
    case Dtype::i16: return "int16";
    case Dtype::f8: return "float8_e4m3fn";
  }
  return "?";
}

SPARSECORE_INLINE float bits_to_f32(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
SPARSECORE_INLINE uint32_t f32_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

SPARSECORE_INLINE float bf16_to_f32(uint16_t h) { return bits_to_f32(static_cast<uint32_t>(h) << 16); }

// Nearest, ties to even; NaN stays a quiet NaN.
SPARSECORE_INLINE uint16_t f32_to_bf16(float value) {
  const uint32_t bits = f32_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

SPARSECORE_INLINE float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, rest = h & 0x7fff;
  if (rest >= 0x7c00) return bits_to_f32(sign | 0x7f800000u | (rest & 0x3ff) << 13);
  // 2^112 rebiases the exponent; subnormals come out exact because the product is.
  return bits_to_f32(sign | f32_to_bits(bits_to_f32(rest << 13) * 0x1p112f));
}

// Nearest, ties to even.
SPARSECORE_INLINE uint16_t f32_to_f16(float value) {
  const uint32_t bits = f32_to_bits(value), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00);  // rounds past 65504
  if (magnitude < 0x38800000u) {  // subnormal: the sum with 0.5 rounds at 2^-24
    const float sum = bits_to_f32(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (f32_to_bits(sum) - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13);
}

// float8_e4m3fn (OCP, 2023): 7 bits of magnitude with exponent bias 7 are those of a half of bias 15, moved by 7; all
// ones is NaN, infinity is not there.
SPARSECORE_INLINE float f8_to_f32(uint8_t b) {
  const uint32_t sign = static_cast<uint32_t>(b & 0x80) << 24, rest = b & 0x7f;
  if (rest == 0x7f) return bits_to_f32(sign | 0x7fc00000u);
  return bits_to_f32(sign | f32_to_bits(bits_to_f32(rest << 20) * 0x1p120f));
}

// Nearest, ties to even; what is larger than 448 becomes 448.
SPARSECORE_INLINE uint8_t f32_to_f8(float value) {
  const uint32_t bits = f32_to_bits(value), magnitude = bits & 0x7fffffffu;
  const uint8_t sign = static_cast<uint8_t>(bits >> 24 & 0x80);
  if (magnitude > 0x7f800000u) return sign | 0x7f;
  if (magnitude >= 0x43e00000u) return sign | 0x7e;
  if (magnitude < 0x3c800000u) {  // below 2^-6, subnormal: the sum with 2^14 rounds at 2^-9
    return static_cast<uint8_t>(sign | (f32_to_bits(bits_to_f32(magnitude) + 16384.0f) - 0x46800000u));
  }
  return static_cast<uint8_t>(sign | ((magnitude - 0x3c000000u + 0x7ffffu + (magnitude >> 20 & 1)) >> 20));
}

SPARSECORE_INLINE float load_f32(const void* base, Dtype d, int64_t i) {
  switch (d) {
    case Dtype::bf16: return bf16_to_f32(static_cast<const uint16_t*>(base)[i]);
    case Dtype::f16: return f16_to_f32(static_cast<const uint16_t*>(base)[i]);
    case Dtype::i8: return static_cast<const int8_t*>(base)[i];
    case Dtype::f8: return f8_to_f32(static_cast<const uint8_t*>(base)[i]);
    default: return static_cast<const float*>(base)[i];
  }
}

SPARSECORE_INLINE void store_f32(void* base, Dtype d, int64_t i, float value) {
  switch (d) {
    case Dtype::bf16: static_cast<uint16_t*>(base)[i] = f32_to_bf16(value); break;
    case Dtype::f16: static_cast<uint16_t*>(base)[i] = f32_to_f16(value); break;
    default: static_cast<float*>(base)[i] = value;
  }
}

}  // namespace sparsecore
