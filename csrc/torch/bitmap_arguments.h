// SPDX-License-Identifier: Apache-2.0
// Bitmap tensors to a BitmapView, and findings to errors.
#pragma once
#include <limits>

#include "core/bitmap.h"
#include "torch/arguments.h"

namespace sparsecore::binding {

// bitmask and row_offsets alone, without nnz.
inline BitmapView bitmap_pattern(const Tensor& bitmask, const Tensor& row_offsets, int64_t k) {
  check_array(bitmask, 2, "bitmask");
  check_dtype(bitmask, ScalarType::Byte, "bitmask");
  check_array(row_offsets, 1, "row_offsets");
  check_dtype(row_offsets, ScalarType::Long, "row_offsets");
  SPARSECORE_REQUIRE(k >= 0 && k <= std::numeric_limits<int32_t>::max(), "k: in_features must be in [0, 2^31), not ",
                     k);
  const int64_t n = bitmask.size(0), bytes = 8 * bitmap_words(k);
  SPARSECORE_REQUIRE(bitmask.size(1) == bytes, "bitmask: must have 8 * ceil(in_features / 64) = ", bytes,
                     " bytes a row, not ", bitmask.size(1));
  SPARSECORE_REQUIRE(row_offsets.numel() == n + 1, "row_offsets: must have out_features + 1 = ", n + 1,
                     " elements, not ", row_offsets.numel());
  return {n,
          k,
          0,
          static_cast<const uint8_t*>(bitmask.const_data_ptr()),
          static_cast<const int64_t*>(row_offsets.const_data_ptr()),
          nullptr,
          nullptr,
          Dtype::f32};
}

inline BitmapView bitmap_view(const Tensor& bitmask, const Tensor& row_offsets, const Tensor& values,
                              const std::optional<Tensor>& scales, int64_t k) {
  check_array(values, 1, "values");
  BitmapView w = bitmap_pattern(bitmask, row_offsets, k);
  w.nnz = values.numel();
  w.values = values.const_data_ptr();
  if (scales) {
    check_dtype(values, ScalarType::Char, "values");
    check_array(*scales, 1, "scales");
    check_dtype(*scales, ScalarType::Float, "scales");
    SPARSECORE_REQUIRE(scales->numel() == w.n, "scales: must have out_features = ", w.n, " elements, not ",
                       scales->numel());
    w.scales = static_cast<const float*>(scales->const_data_ptr());
    w.value = Dtype::i8;
  } else {
    SPARSECORE_REQUIRE(values.scalar_type() != ScalarType::Char, "scales: int8 values need one float32 scale a row");
    w.value = float_dtype(values, "values");
  }
  return w;
}

inline void raise(const BitmapFinding& f, const BitmapView& w) {
  SPARSECORE_REQUIRE(f.fault != BitmapFault::offsets_start, "row_offsets: must start with 0, not ", f.value);
  SPARSECORE_REQUIRE(f.fault != BitmapFault::offsets_end, "row_offsets: entry ", f.row, " is ", f.value,
                     ", but nnz is ", w.nnz);
  SPARSECORE_REQUIRE(f.fault != BitmapFault::offsets_falls, "row_offsets: must not fall, but entry ", f.row + 1, " is ",
                     f.value, " after ", w.row_offsets[f.row]);
  SPARSECORE_REQUIRE(f.fault != BitmapFault::popcount, "bitmask: row ", f.row, " has ", f.value,
                     " bits set, but row_offsets gives it ", w.row_offsets[f.row + 1] - w.row_offsets[f.row],
                     " values");
  SPARSECORE_REQUIRE(f.fault != BitmapFault::padding, "bitmask: row ", f.row,
                     " has a bit set past in_features = ", w.k);
}

// `out` overlaps no array of a product with a bitmap weight; linear_output has looked at x.
inline void check_disjoint_weight(const Tensor& out, const Tensor& bitmask, const Tensor& row_offsets,
                                  const Tensor& values, const std::optional<Tensor>& scales,
                                  const std::optional<Tensor>& bias) {
  check_disjoint(out, bitmask, "bitmask");
  check_disjoint(out, row_offsets, "row_offsets");
  check_disjoint(out, values, "values");
  if (scales) check_disjoint(out, *scales, "scales");
  if (bias) check_disjoint(out, *bias, "bias");
}

}  // namespace sparsecore::binding
