// SPDX-License-Identifier: Apache-2.0
// Arguments of kv_attention from a call, without splits and partial.
#pragma once
#include "kv_op.h"
#include "ops/kv_attention/kv_attention.h"

namespace sparsecore::native {

inline float real(const Call& call, const char* name) { return bits_to_f32(static_cast<uint32_t>(call.integer(name))); }

inline KvPool pool(const Call& call, const std::string& half) {
  const Array &bits = call.array(half + "_bitmask"), &values = call.array(half + "_values");
  return {bits.as<uint8_t>(), values.data, call.array(half + "_dense").data, values.shape[3]};
}

// Arrays as the op has them; out and lse are outputs.
inline kv_attention::Args attention_args(const Call& call) {
  const Array &q = call.array("q"), &values = call.array("k_values"), &dense = call.array("k_dense");
  kv_attention::Args a{};
  KvView& c = a.cache;
  c = {q.shape[0],
       values.shape[1],
       q.shape[3],
       values.shape[2],
       call.array("page_table").shape[1],
       values.shape[0],
       dense.shape[0],
       pool(call, "k"),
       pool(call, "v"),
       call.array("page_table").as<int32_t>(),
       call.array("lengths").as<int32_t>(),
       values.dtype};
  a.q_heads = q.shape[1];
  a.q_tokens = q.shape[2];
  a.q = q.data;
  a.query = q.dtype;
  a.scale = real(call, "scale");
  a.softcap = real(call, "softcap");
  a.window = call.integer("window");
  if (const Array* bias = call.find("bias")) {
    a.bias = bias->as<float>();
    a.bias_keys = bias->shape[3];
    int64_t step = 1;
    for (int i = 3; i >= 0; step *= bias->shape[i--]) a.bias_strides[i] = i < 3 && bias->shape[i] == 1 ? 0 : step;
  }
  a.slopes = static_cast<const float*>(call.data_or_null("slopes"));
  if (const Array* selected = call.find("selected")) {
    a.selected = selected->as<int32_t>();
    a.selected_pages = selected->shape[2];
  }
  a.drop = bits_to_f32(static_cast<uint32_t>(call.integer("drop", 0)));
  a.out = call.array("out").data;
  a.lse = call.array("lse").as<float>();
  return a;
}

}  // namespace sparsecore::native
