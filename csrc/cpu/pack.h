// SPDX-License-Identifier: Apache-2.0
// How x lies for the loops of a weight op: rows widened to fp32, panels, or words of 64 columns. Included after a vec
// header by *_<isa>.cpp; everything here has internal linkage.
#pragma once
#include "core/linear.h"

namespace sparsecore {
namespace {

inline const float* widen_all(const void* base, Dtype d, int64_t begin, int64_t count, float* out) {
  if (d == Dtype::f32) return static_cast<const float*>(base) + begin;
  int64_t i = 0;
  if (d == Dtype::i8) {
    const int8_t* in = static_cast<const int8_t*>(base) + begin;
    for (; i + kWiden <= count; i += kWiden) widen(in + i, out + i);
  } else {
    const uint16_t* in = static_cast<const uint16_t*>(base) + begin;
    for (; i + kWiden <= count; i += kWiden) widen(in + i, d, out + i);
  }
  for (; i < count; ++i) out[i] = load_f32(base, d, begin + i);
  return out;
}

// Width of the panel that holds rows [first, m) of x, at most `tile`.
inline int64_t panel_width(int64_t left, int64_t tile) {
  int64_t width = 4;
  while (width < left && width < tile) width *= 2;
  return width;
}

// Fills pieces [begin, end) of the packed x: rows in fp32, or panels (linear.h).
inline void pack_x(const Linear& a, const Plan& plan, float* packed, int64_t begin, int64_t end) {
  constexpr int64_t kLine = 64;
  alignas(64) constexpr float zeros[kLine] = {};
  const int64_t c0 = begin * kPackColumns, c1 = end * kPackColumns < a.k ? end * kPackColumns : a.k;
  const int64_t bytes = dtype_bytes(a.dtype), tile = plan.tile == 0 ? 1 : plan.tile;
  const auto row = [&](int64_t i) { return static_cast<const char*>(a.x) + i * a.x_stride * bytes; };
  for (int64_t c = c0; c < c1; c += kLine) {
    const int64_t span = c1 - c < kLine ? c1 - c : kLine;
    alignas(64) float line[4][kLine];
    for (int64_t first = 0; first < a.m; first += tile) {
      const int64_t width = plan.tile == 0 ? 1 : panel_width(a.m - first, tile);
      float* out = packed + first * a.k + c * width;
      if (width == 1) {
        const float* in = widen_all(row(first), a.dtype, c, span, out);
        if (in != out) std::memcpy(out, in, static_cast<size_t>(span) * sizeof(float));
        continue;
      }
      for (int64_t i = 0; i < width; i += 4, out += 4) {
        const float* in[4];
        for (int64_t r = 0; r < 4; ++r)
          in[r] = first + i + r < a.m ? widen_all(row(first + i + r), a.dtype, c, span, line[r]) : zeros;
        int64_t j = 0;
        for (; j + 4 <= span; j += 4) {
          F32x4::reg t[4] = {F32x4::load(in[0] + j), F32x4::load(in[1] + j), F32x4::load(in[2] + j),
                             F32x4::load(in[3] + j)};
          F32x4::transpose(t);
#pragma GCC unroll 4
          for (int64_t r = 0; r < 4; ++r) F32x4::store(out + (j + r) * width, t[r]);
        }
        for (; j < span; ++j)
          for (int64_t r = 0; r < 4; ++r) out[j * width + r] = in[r][j];
      }
    }
  }
}

// Fills pieces [begin, end) of x packed by words of 64 columns: [pass of M rows][word][M][64], 0 beyond k and for
// rows beyond m. Of each `lanes` columns (a step) those that are equal modulo `parts` come together, in order.
inline void pack_words(const Linear& a, int64_t M, int64_t lanes, int64_t parts, float* packed, int64_t begin,
                       int64_t end) {
  static_assert(kPackColumns % 64 == 0);
  const int64_t words = (a.k + 63) / 64, rows = (a.m + M - 1) / M * M, per = kPackColumns / 64;
  const int64_t word_end = end * per < words ? end * per : words;
  int32_t order[64];
  for (int64_t s = 0; s < 64; s += lanes)
    for (int64_t j = 0; j < lanes; ++j)
      order[s + j % parts * (lanes / parts) + j / parts] = static_cast<int32_t>(s + j);
  for (int64_t i = 0; i < rows; ++i) {
    const void* row = static_cast<const char*>(a.x) + i * a.x_stride * dtype_bytes(a.dtype);
    for (int64_t word = begin * per; word < word_end; ++word) {
      const int64_t c = word * 64, live = i >= a.m ? 0 : a.k - c < 64 ? a.k - c : 64;
      alignas(64) float line[64];
      const float* in = widen_all(row, a.dtype, c, live, line);
      if (live < 64) {
        if (in != line && live > 0) std::memcpy(line, in, static_cast<size_t>(live) * sizeof(float));
        for (int64_t j = live; j < 64; ++j) line[j] = 0.0f;
        in = line;
      }
      float* out = packed + ((i / M * words + word) * M + i % M) * 64;
      for (int j = 0; j < 64; j += 4)
        F32x4::store(out + j, parts > 1 ? F32x4::gather(in, order + j) : F32x4::load(in + j));
    }
  }
}

}  // namespace
}  // namespace sparsecore
