// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_append/kv_append.h"
#include "torch/cuda.h"
#include "torch/kv_append_arguments.h"

namespace sparsecore::kv_append {
namespace {

using namespace binding;

void check_aligned(const KvTensor& t) {
  SPARSECORE_REQUIRE(reinterpret_cast<uintptr_t>(t.tensor.const_data_ptr()) % 4 == 0, t.name,
                     ": must begin at a multiple of 4 bytes");
}

void kv_append(const Tensor& k, const Tensor& v, const Tensor& k_bitmask, const Tensor& k_values, const Tensor& k_dense,
               const Tensor& v_bitmask, const Tensor& v_values, const Tensor& v_dense, const Tensor& page_table,
               const Tensor& lengths, const Tensor& targets, int64_t recent, const std::optional<Tensor>& k_weight,
               const std::optional<Tensor>& v_weight) {
  check_device(k, "k");
  for (const KvTensor& t : std::initializer_list<KvTensor>{{v, "v"},
                                                           {k_bitmask, "k_bitmask"},
                                                           {k_values, "k_values"},
                                                           {k_dense, "k_dense"},
                                                           {v_bitmask, "v_bitmask"},
                                                           {v_values, "v_values"},
                                                           {v_dense, "v_dense"},
                                                           {page_table, "page_table"},
                                                           {lengths, "lengths"},
                                                           {targets, "targets"}})
    check_same_device(k, "k", t.tensor, t.name);
  check_same_device(k, "k", k_weight, "k_weight");
  check_same_device(k, "k", v_weight, "v_weight");
  const DeviceGuard guard(k.get_device_index());
  Args a{};
  const KvNew tokens = kv_appended(a, k, v, {{k_bitmask, k_values, k_dense}, {v_bitmask, v_values, v_dense}},
                                   page_table, lengths, targets, recent, k_weight, v_weight);
  check_aligned({k_bitmask, "k_bitmask"});
  check_aligned({v_bitmask, "v_bitmask"});
  check_launch(launch(a, current_stream(k)), "kv_append");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CUDA, m) { m.impl("kv_append", TORCH_BOX(&kv_append)); }

}  // namespace sparsecore::kv_append
