// SPDX-License-Identifier: Apache-2.0
// Arguments of kv_append from a call. Arrays as the op has them, all but k, v, targets and weights, which may be missing,
// changed in place; k and v are contiguous, their channels past head_dim are gaps.
#pragma once
#include "kv_op.h"
#include "ops/kv_append/kv_append.h"

namespace sparsecore::native {

inline kv_append::Half append_half(const Call& call, const std::string& name) {
  const Array &x = call.array(name), &values = call.array(name + "_values");
  const std::vector<int64_t>& n = x.shape;
  kv_append::Half half{};
  half.x = x.data;
  half.strides[0] = n[1] * n[2] * n[3];
  half.strides[1] = n[2] * n[3];
  half.strides[2] = n[3];
  half.bitmask = call.array(name + "_bitmask").as<uint8_t>();
  half.values = values.data;
  half.dense = call.array(name + "_dense").data;
  half.keep = values.shape[3];
  if (const Array* const weight = call.find(name + "_weight")) {
    half.weight = weight->as<float>();
    half.weight_step = weight->shape.size() == 3 ? weight->shape[1] * weight->shape[2] : 0;
  }
  return half;
}

inline kv_append::Args append_args(const Call& call) {
  const Array &x = call.array("k"), &values = call.array("k_values"), &dense = call.array("k_dense");
  kv_append::Args a{};
  a.batch = x.shape[0];
  a.kv_heads = x.shape[1];
  a.tokens = x.shape[2];
  a.head_dim = dense.shape[3];
  a.page = values.shape[2];
  a.columns = call.array("page_table").shape[1];
  a.pages = values.shape[0];
  a.dense_pages = dense.shape[0];
  a.recent = call.integer("recent");
  a.k = append_half(call, "k");
  a.v = append_half(call, "v");
  a.page_table = call.array("page_table").as<int32_t>();
  a.lengths = call.array("lengths").as<int32_t>();
  a.targets = call.array("targets").as<int32_t>();
  a.value = values.dtype;
  return a;
}

}  // namespace sparsecore::native
