// SPDX-License-Identifier: Apache-2.0
// Tensors that kv_append takes to its Args.
#pragma once
#include "torch/kv_arguments.h"

namespace sparsecore::binding {

// x itself where channels are adjacent, else a copy.
template <class Args, class Half>
Tensor new_tokens(Args& a, const KvTensor& x, Half& half) {
  check_device(x.tensor, x.name);
  SPARSECORE_REQUIRE(x.tensor.dim() == 4, x.name, ": must be [batch, kv_heads, tokens, head_dim], not of ",
                     x.tensor.dim(), " dimension(s)");
  const Dtype value = float_dtype(x.tensor, x.name);
  if (a.head_dim == 0) {
    a.value = value;
    a.batch = x.tensor.size(0);
    a.kv_heads = x.tensor.size(1);
    a.tokens = x.tensor.size(2);
    a.head_dim = x.tensor.size(3);
    SPARSECORE_REQUIRE(kv_is_head_dim(a.head_dim), x.name, ": head_dim must be in [32, 256] and a multiple of 8, not ",
                       a.head_dim);
    SPARSECORE_REQUIRE(a.kv_heads >= 1, x.name, ": must have at least one KV head");
  }
  SPARSECORE_REQUIRE(value == a.value, x.name, ": dtype must be ", dtype_name(a.value), " as that of k");
  check_sizes(x, {a.batch, a.kv_heads, a.tokens, a.head_dim}, "as k");
  const Tensor t = x.tensor.stride(3) == 1 ? x.tensor : torch::stable::contiguous(x.tensor);
  half.x = t.const_data_ptr();
  for (int i = 0; i < 3; ++i) half.strides[i] = t.stride(i);
  return t;
}

template <class Args, class Half>
void appended_pool(const Args& a, KvView& c, const KvTensor& bitmask, const KvTensor& values, const KvTensor& dense,
                   ScalarType type, Half& half) {
  check_dtype(values.tensor, type, values.name);
  half.keep = kv_pool(c, bitmask, values, dense).keep;
  SPARSECORE_REQUIRE(c.kv_heads == a.kv_heads, values.name, ": dimension 1 must be ", a.kv_heads, " (as k), not ",
                     c.kv_heads);
  half.bitmask = static_cast<uint8_t*>(bitmask.tensor.mutable_data_ptr());
  half.values = values.tensor.mutable_data_ptr();
  half.dense = dense.tensor.mutable_data_ptr();
}

inline int32_t* appended_table(int64_t batch, const KvTensor& t, int64_t dims, const char* what) {
  check_array(t.tensor, dims, t.name);
  check_dtype(t.tensor, ScalarType::Int, t.name);
  SPARSECORE_REQUIRE(t.tensor.size(0) == batch, t.name, ": must have ", what, " for each of ", batch,
                     " sequences, not ", t.tensor.size(0));
  return static_cast<int32_t*>(t.tensor.mutable_data_ptr());
}

// No array that changes lies over another one; the first `changed` of `all` do.
inline void check_apart(const std::vector<KvTensor>& all, size_t changed) {
  std::vector<std::pair<const char*, const char*>> spans;
  for (const KvTensor& t : all) spans.push_back(byte_span(t.tensor));
  for (size_t i = 0; i < changed; ++i)
    for (size_t j = i + 1; j < all.size(); ++j)
      SPARSECORE_REQUIRE(spans[i].first >= spans[j].second || spans[j].first >= spans[i].second, all[i].name,
                         ": overlaps ", all[j].name, " in memory");
}

template <class Args, class Half>
void appended_weight(const Args& a, const std::optional<Tensor>& weight, const char* name, Half& half,
                     std::vector<KvTensor>& all) {
  if (!weight) return;
  const int64_t dims = weight->dim();
  SPARSECORE_REQUIRE(dims == 2 || dims == 3, name,
                     ": must be [kv_heads, head_dim] or [batch, kv_heads, head_dim], not of ", dims, " dimension(s)");
  check_array(*weight, dims, name);
  check_dtype(*weight, ScalarType::Float, name);
  const std::vector<int64_t> sizes = {a.batch, a.kv_heads, a.head_dim};
  check_sizes({*weight, name}, {sizes.end() - dims, sizes.end()}, "as k");
  half.weight = static_cast<const float*>(weight->const_data_ptr());
  half.weight_step = dims == 3 ? a.kv_heads * a.head_dim : 0;
  all.push_back({*weight, name});
}

struct KvNew {
  Tensor k, v;  // what a.k.x and a.v.x point into
};

// Checks the arguments of kv_append but what lies in tables and lengths, and fills `a`.
template <class Args>
KvNew kv_appended(Args& a, const Tensor& k, const Tensor& v, const KvHalves& halves, const Tensor& page_table,
                  const Tensor& lengths, const Tensor& targets, int64_t recent, const std::optional<Tensor>& k_weight,
                  const std::optional<Tensor>& v_weight) {
  KvNew made{new_tokens(a, {k, "k"}, a.k), new_tokens(a, {v, "v"}, a.v)};
  KvView c{};
  c.head_dim = a.head_dim;
  const auto& [ks, vs] = halves;
  std::vector<KvTensor> all = {{ks.bitmask, "k_bitmask"},
                               {ks.values, "k_values"},
                               {ks.dense, "k_dense"},
                               {vs.bitmask, "v_bitmask"},
                               {vs.values, "v_values"},
                               {vs.dense, "v_dense"},
                               {page_table, "page_table"},
                               {lengths, "lengths"},
                               {k, "k"},
                               {v, "v"},
                               {targets, "targets"}};
  appended_pool(a, c, all[0], all[1], all[2], k.scalar_type(), a.k);
  appended_pool(a, c, all[3], all[4], all[5], k.scalar_type(), a.v);
  a.page = c.page;
  a.pages = c.pages;
  a.dense_pages = c.dense_pages;
  a.page_table = appended_table(a.batch, all[6], 2, "a row");
  a.columns = page_table.size(1);
  a.lengths = appended_table(a.batch, all[7], 1, "one");
  a.targets = appended_table(a.batch, all[10], 2, "a row");
  SPARSECORE_REQUIRE(targets.size(1) == a.columns, "targets: must have ", a.columns, " columns as page_table, not ",
                     targets.size(1));
  SPARSECORE_REQUIRE(recent >= 1, "recent: must be at least the page that fills, 1, not ", recent);
  a.recent = recent < a.columns ? recent : a.columns;
  appended_weight(a, k_weight, "k_weight", a.k, all);
  appended_weight(a, v_weight, "v_weight", a.v, all);
  check_apart(all, 8);
  return made;
}

}  // namespace sparsecore::binding
