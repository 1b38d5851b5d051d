// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_attention/kv_attention.h"

#include <tuple>

#include "torch/kv_arguments.h"
#include "torch/memory.h"
#include "torch/parallel.h"

namespace sparsecore::kv_attention {
namespace {

using namespace binding;

[[noreturn]] void raise(const Args& a, const KvFinding& f) {
  const char* const half = f.fault == KvFault::k_population ? "k_bitmask" : "v_bitmask";
  const int64_t keep = f.fault == KvFault::k_population ? a.cache.k.keep : a.cache.v.keep;
  switch (f.fault) {
    case KvFault::no_page:
      throw_message("page_table: sequence ", f.sequence, " has no page for token ", f.token, " of its ",
                    a.cache.lengths[f.sequence]);
    case KvFault::page:
      throw_message("page_table: sequence ", f.sequence, " has entry ", f.value, " for token ", f.token, ", outside ",
                    a.cache.pages, " compressed and ", a.cache.dense_pages, " dense pages");
    default:
      if (f.value > a.cache.head_dim)
        throw_message(half, ": token ", f.token, " of sequence ", f.sequence,
                      " has bits of channels past head_dim = ", a.cache.head_dim);
      throw_message(half, ": token ", f.token, " of sequence ", f.sequence, " has ", f.value, " bits set, not ", keep,
                    " as its values are");
  }
}

void check_selected(const Args& a) {
  if (!a.selected) return;
  std::vector<int64_t> last_row(static_cast<size_t>(a.cache.columns));
  const int64_t wrong = find_selected_fault(a, last_row.data());
  if (wrong < 0) return;
  const int64_t column = a.selected[wrong], row = wrong / a.selected_pages;
  const int64_t sequence = row / a.cache.kv_heads, head = row % a.cache.kv_heads;
  if (column >= 0 && column < a.cache.columns)
    throw_message("selected: sequence ", sequence, ", KV head ", head, " has ", column, " twice");
  throw_message("selected: sequence ", sequence, ", KV head ", head, " has ", column, ", outside the columns [0, ",
                a.cache.columns, ") of page_table");
}

std::tuple<Tensor, Tensor> kv_attention(const Tensor& q, const Tensor& k_bitmask, const Tensor& k_values,
                                        const Tensor& k_dense, const Tensor& v_bitmask, const Tensor& v_values,
                                        const Tensor& v_dense, const Tensor& page_table, const Tensor& lengths,
                                        std::optional<double> scale, double softcap, int64_t window,
                                        const std::optional<Tensor>& bias, const std::optional<Tensor>& slopes,
                                        const std::optional<Tensor>& selected, double threshold) {
  Args a{};
  kv_attended(a, q, {{k_bitmask, k_values, k_dense}, {v_bitmask, v_values, v_dense}}, page_table, lengths, scale,
              softcap, window, bias, slopes);
  kv_skipped(a, selected, threshold);
  const KvView& c = a.cache;
  int64_t longest = 0, tokens = 0;
  for (int64_t i = 0; i < c.batch; ++i) {
    SPARSECORE_REQUIRE(kv_length_fits(c, i), "lengths: sequence ", i, " has ", c.lengths[i], " tokens, outside [0, ",
                       c.columns * c.page, "] that page_table has pages for");
    longest = std::max<int64_t>(longest, c.lengths[i]);
    tokens += a.selected ? std::min<int64_t>(c.lengths[i], a.selected_pages * c.page) : c.lengths[i];
  }
  check_selected(a);
  SPARSECORE_REQUIRE(!bias || a.bias_keys >= longest, "bias: must have a number for each of ", longest, " keys, not ",
                     a.bias_keys);
  const Tensor out = empty_like_dtype(q, {c.batch, a.q_heads, a.q_tokens, c.head_dim});
  const Tensor lse = empty(Dtype::f32, {c.batch, a.q_heads, a.q_tokens});
  a.out = out.mutable_data_ptr();
  a.lse = static_cast<float*>(lse.mutable_data_ptr());
  a.splits = (a.listed(longest) + a.split_pages() - 1) / a.split_pages();

  const Kernel& kernel = cpu::choose(kernels());
  note_kernel(kernel.name);
  if (q.numel() == 0) return {out, lse};
  const int64_t heads = c.batch * c.kv_heads, threads = thread_count(tokens * a.q_heads * a.q_tokens * c.head_dim);
  const int64_t partial_bytes = (a.tasks() * a.queries() * a.stride() * 4 + 63) / 64 * 64;
  const int64_t scratch_bytes = (kernel.scratch_bytes(a) + 63) / 64 * 64;
  const Memory memory = reserve(partial_bytes + threads * scratch_bytes);
  a.partial = reinterpret_cast<float*>(memory.get());
  std::atomic<int64_t> bad{-1};
  for_pieces(a.tasks(), threads, [&](int64_t task, int64_t thread) {
    if (!kernel.run(a, task, memory.get() + partial_bytes + thread * scratch_bytes))
      bad.store(task, std::memory_order_relaxed);
  });
  if (bad.load() >= 0) raise(a, find_fault(a, bad.load()));
  for_pieces(heads, std::min(threads, heads), [&](int64_t head, int64_t) { kernel.merge(a, head); });
  return {out, lse};
}

const bool registered = register_kernels("kv_attention", kernels());

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def(
      "kv_attention(Tensor q, Tensor k_bitmask, Tensor k_values, Tensor k_dense, Tensor v_bitmask, Tensor v_values, "
      "Tensor v_dense, Tensor page_table, Tensor lengths, float? scale=None, float softcap=0.0, int window=0, "
      "Tensor? bias=None, Tensor? slopes=None, Tensor? selected=None, float threshold=0.0) -> (Tensor out, Tensor "
      "lse)");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) { m.impl("kv_attention", TORCH_BOX(&kv_attention)); }

}  // namespace sparsecore::kv_attention
