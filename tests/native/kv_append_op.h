// SPDX-License-Identifier: Apache-2.0
// Arguments of kv_append from a call. Arrays as the op has them, all but k, v and targets changed in place; k and v are
// contiguous, their channels past head_dim are gaps.
#pragma once
#include "kv_op.h"
#include "ops/kv_append/kv_append.h"

namespace sparsecore::native {

inline kv_append::Half append_half(const Call& call, const std::string& name) {
  const Array &x = call.array(name), &values = call.array(name + "_values");
  const std::vector<int64_t>& n = x.shape;
  return {x.data,      {n[1] * n[2] * n[3], n[2] * n[3], n[3]}, call.array(name + "_bitmask").as<uint8_t>(),
          values.data, call.array(name + "_dense").data,        values.shape[3]};
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
