// SPDX-License-Identifier: Apache-2.0
// Tensors of compressed keys and values to raw views.
#pragma once
#include "core/kv.h"
#include "torch/arguments.h"

namespace sparsecore::binding {

// Checks the arguments of kv_decompress, allocates its output and fills `args`; returns how many rows there are.
template <class Args>
int64_t kv_decompressed(Args& args, const Tensor& bitmask, const Tensor& values, int64_t head_dim, Tensor& dense) {
  SPARSECORE_REQUIRE(values.dim() >= 1, "values: must have at least one dimension, [..., keep]");
  const int64_t dims = values.dim();
  check_array(bitmask, dims, "bitmask");
  check_array(values, dims, "values");
  check_dtype(bitmask, ScalarType::Byte, "bitmask");
  SPARSECORE_REQUIRE(kv_is_head_dim(head_dim), "head_dim: must be in [32, 256] and a multiple of 8, not ", head_dim);
  args.value = float_dtype(values, "values");
  args.head_dim = head_dim;
  args.keep = values.size(dims - 1);
  SPARSECORE_REQUIRE(args.keep <= head_dim, "values: must keep at most head_dim = ", head_dim, " channels, not ",
                     args.keep);
  SPARSECORE_REQUIRE(bitmask.size(dims - 1) == 4 * kv_words(head_dim), "bitmask: must have ", 4 * kv_words(head_dim),
                     " bytes a token for head_dim = ", head_dim, ", not ", bitmask.size(dims - 1));
  std::vector<int64_t> sizes(values.sizes().begin(), values.sizes().end());
  sizes.back() = head_dim;
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < dims; ++i) {
    SPARSECORE_REQUIRE(bitmask.size(i) == sizes[i], "bitmask: dimension ", i, " must be ", sizes[i],
                       " as that of values, not ", bitmask.size(i));
    rows *= sizes[i];
  }
  dense = empty_like_dtype(values, sizes);
  args.bitmask = static_cast<const uint8_t*>(bitmask.const_data_ptr());
  args.values = values.const_data_ptr();
  args.dense = dense.mutable_data_ptr();
  return rows;
}

}  // namespace sparsecore::binding
