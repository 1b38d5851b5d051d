// SPDX-License-Identifier: Apache-2.0
// What adapters of ops on compressed keys and values share.
#pragma once
#include "core/kv.h"
#include "harness.h"

namespace sparsecore::native {

inline Dtype random_value(Random& random) {
  static constexpr Dtype kAll[] = {Dtype::f32, Dtype::bf16, Dtype::f16};
  return kAll[below(random, 3)];
}
inline int64_t random_head_dim(Random& random) { return 32 + 8 * below(random, 29); }

// Small numbers, of few magnitudes.
inline void fill_small(Random& random, void* data, Dtype d, int64_t count) {
  for (int64_t i = 0; i < count; ++i) store_f32(data, d, i, static_cast<float>(below(random, 19) - 9) / 16.0f);
}

// Bits of `rows` tokens, `keep` of head_dim channels by chance.
inline void fill_bits(Random& random, uint8_t* bits, int64_t rows, int64_t head_dim, int64_t keep) {
  const int64_t bytes = 4 * kv_words(head_dim);
  std::memset(bits, 0, static_cast<size_t>(rows * bytes));
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t c = 0, left = keep; left > 0; ++c)
      if (below(random, head_dim - c) < left) {
        bits[row * bytes + c / 8] |= static_cast<uint8_t>(1 << c % 8);
        --left;
      }
}

// Arguments of kv_compress and the rows: x [rows, stride]; bitmask [rows, 4 * words], values [rows, keep] are outputs,
// weight [weights, head_dim] may be there.
template <class Args>
std::pair<Args, int64_t> compress_args(const Call& call) {
  const Array &x = call.array("x"), &bitmask = call.array("bitmask"), &values = call.array("values");
  const int64_t d = call.integer("head_dim"), rows = x.shape[0];
  if (!kv_is_head_dim(d) || x.shape[1] < d || bitmask.size() != rows * 4 * kv_words(d) || values.dtype != x.dtype ||
      values.shape.back() > d || values.size() != rows * values.shape.back())
    throw std::invalid_argument("x, head_dim, bitmask and values do not fit together");
  const Array* const weight = call.find("weight");
  return {{d, values.shape.back(), x.data, x.shape[1], bitmask.as<uint8_t>(), values.data, x.dtype,
           weight ? weight->as<float>() : nullptr, weight ? weight->size() / d : 0, call.integer("tokens", 1)},
          rows};
}

// Those of kv_decompress, of which dense [rows, head_dim] is the output.
template <class Args>
std::pair<Args, int64_t> decompress_args(const Call& call) {
  const Array &bitmask = call.array("bitmask"), &values = call.array("values"), &dense = call.array("dense");
  const int64_t d = call.integer("head_dim"), rows = values.shape[0], keep = values.shape[1];
  if (!kv_is_head_dim(d) || keep > d || bitmask.size() != rows * 4 * kv_words(d) || dense.size() != rows * d ||
      dense.dtype != values.dtype)
    throw std::invalid_argument("bitmask, values, head_dim and dense do not fit together");
  return {{d, keep, bitmask.as<uint8_t>(), values.data, dense.data, values.dtype}, rows};
}

}  // namespace sparsecore::native
