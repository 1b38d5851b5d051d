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

}  // namespace sparsecore::native
