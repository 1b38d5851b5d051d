// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_attention/kv_attention.h"

#include <tuple>

#include "torch/cuda.h"
#include "torch/kv_arguments.h"

namespace sparsecore::kv_attention {
namespace {

using namespace binding;

std::tuple<Tensor, Tensor> kv_attention(const Tensor& q, const Tensor& k_bitmask, const Tensor& k_values,
                                        const Tensor& k_dense, const Tensor& v_bitmask, const Tensor& v_values,
                                        const Tensor& v_dense, const Tensor& page_table, const Tensor& lengths,
                                        std::optional<double> scale, double softcap, int64_t window,
                                        const std::optional<Tensor>& bias, const std::optional<Tensor>& slopes,
                                        const std::optional<Tensor>& selected, double threshold) {
  check_device(q, "q");
  const KvTensor others[] = {{k_bitmask, "k_bitmask"}, {k_values, "k_values"},    {k_dense, "k_dense"},
                             {v_bitmask, "v_bitmask"}, {v_values, "v_values"},    {v_dense, "v_dense"},
                             {lengths, "lengths"},     {page_table, "page_table"}};
  for (const KvTensor& t : others) check_same_device(q, "q", t.tensor, t.name);
  check_same_device(q, "q", bias, "bias");
  check_same_device(q, "q", slopes, "slopes");
  check_same_device(q, "q", selected, "selected");
  const DeviceGuard guard(q.get_device_index());
  std::vector<Tensor> pools;  // 16 bytes at a time are read
  for (int i = 0; i < 6; ++i) pools.push_back(aligned(others[i].tensor, 16));
  Args a{};
  kv_attended(a, q, {{pools[0], pools[1], pools[2]}, {pools[3], pools[4], pools[5]}}, page_table, lengths, scale,
              softcap, window, bias, slopes);
  kv_skipped(a, selected, threshold);
  const KvView& c = a.cache;
  SPARSECORE_REQUIRE(c.columns * c.page < (int64_t{1} << 31) - 1024, "page_table: has columns for ", c.columns * c.page,
                     " tokens, more than 2^31 - 1025");
  const Tensor out = empty_like_dtype(q, {c.batch, a.q_heads, a.q_tokens, c.head_dim});
  const Tensor lse = empty(Dtype::f32, {c.batch, a.q_heads, a.q_tokens});
  a.out = out.mutable_data_ptr();
  a.lse = static_cast<float*>(lse.mutable_data_ptr());
  if (q.numel() == 0) return {out, lse};
  a.splits = device_splits(a);
  const Tensor partial = empty(Dtype::f32, {a.tasks() * a.queries() * a.stride()});
  a.partial = static_cast<float*>(partial.mutable_data_ptr());
  check_launch(launch(a, current_stream(q)), "kv_attention");
  return {out, lse};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CUDA, m) { m.impl("kv_attention", TORCH_BOX(&kv_attention)); }

}  // namespace sparsecore::kv_attention
