// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_attention/kv_attention.h"

#include <tuple>

#include "torch/arguments.h"
#include "torch/memory.h"
#include "torch/parallel.h"

namespace sparsecore::kv_attention {
namespace {

using namespace binding;

struct Named {
  const Tensor& tensor;
  const char* name;
};

void check_sizes(const Named& t, const std::vector<int64_t>& sizes, const char* what) {
  for (size_t i = 0; i < sizes.size(); ++i)
    SPARSECORE_REQUIRE(t.tensor.size(static_cast<int64_t>(i)) == sizes[i], t.name, ": dimension ", i, " must be ",
                       sizes[i], " (", what, "), not ", t.tensor.size(static_cast<int64_t>(i)));
}

// Bits, values and dense pages of K, or of V; sizes that K has set are V's too.
KvPool pool(KvView& c, const Named& bitmask, const Named& values, const Named& dense) {
  check_array(bitmask.tensor, 4, bitmask.name);
  check_array(values.tensor, 4, values.name);
  check_array(dense.tensor, 4, dense.name);
  check_dtype(bitmask.tensor, ScalarType::Byte, bitmask.name);
  const Dtype value = float_dtype(values.tensor, values.name);
  if (c.page == 0) {
    c.value = value;
    c.pages = values.tensor.size(0);
    c.kv_heads = values.tensor.size(1);
    c.page = values.tensor.size(2);
    c.dense_pages = dense.tensor.size(0);
    SPARSECORE_REQUIRE(kv_is_page(c.page), values.name,
                       ": a page must have a multiple of 16 tokens in [16, 1024], not ", c.page);
    SPARSECORE_REQUIRE(c.kv_heads >= 1, values.name, ": must have at least one KV head");
    const int64_t most = std::numeric_limits<int32_t>::max() - 1;
    SPARSECORE_REQUIRE(c.pages <= most && c.dense_pages <= most, values.name, ": more pages than int32 numbers");
  }
  SPARSECORE_REQUIRE(value == c.value, values.name, ": dtype must be ", dtype_name(c.value), " as that of k_values");
  check_dtype(dense.tensor, values.tensor.scalar_type(), dense.name);
  const int64_t keep = values.tensor.size(3);
  SPARSECORE_REQUIRE(keep <= c.head_dim, values.name, ": must keep at most head_dim = ", c.head_dim, " channels, not ",
                     keep);
  check_sizes(values, {c.pages, c.kv_heads, c.page, keep}, "as k_values");
  check_sizes(bitmask, {c.pages, c.kv_heads, c.page, 4 * kv_words(c.head_dim)}, "as values, 4 bytes for 32 channels");
  check_sizes(dense, {c.dense_pages, c.kv_heads, c.page, c.head_dim}, "as values, head_dim of q");
  return {static_cast<const uint8_t*>(bitmask.tensor.const_data_ptr()), values.tensor.const_data_ptr(),
          dense.tensor.const_data_ptr(), keep};
}

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

void set_bias(Args& a, const Tensor& bias, int64_t longest) {
  check_device(bias, "bias");
  check_dtype(bias, ScalarType::Float, "bias");
  SPARSECORE_REQUIRE(bias.dim() == 4, "bias: must be [batch, q_heads, q_tokens, keys], not of ", bias.dim(),
                     " dimension(s)");
  const int64_t full[] = {a.cache.batch, a.q_heads, a.q_tokens};
  for (int64_t i = 0; i < 3; ++i) {
    SPARSECORE_REQUIRE(bias.size(i) == full[i] || bias.size(i) == 1, "bias: dimension ", i, " must be ", full[i],
                       " or 1, not ", bias.size(i));
    a.bias_strides[i] = bias.size(i) == 1 ? 0 : bias.stride(i);
  }
  SPARSECORE_REQUIRE(bias.size(3) >= longest, "bias: must have a number for each of ", longest, " keys, not ",
                     bias.size(3));
  a.bias_strides[3] = bias.stride(3);
  a.bias = static_cast<const float*>(bias.const_data_ptr());
}

std::tuple<Tensor, Tensor> kv_attention(const Tensor& q, const Tensor& k_bitmask, const Tensor& k_values,
                                        const Tensor& k_dense, const Tensor& v_bitmask, const Tensor& v_values,
                                        const Tensor& v_dense, const Tensor& page_table, const Tensor& lengths,
                                        std::optional<double> scale, double softcap, int64_t window,
                                        const std::optional<Tensor>& bias, const std::optional<Tensor>& slopes) {
  check_array(q, 4, "q");
  Args a{};
  a.query = float_dtype(q, "q");
  KvView& c = a.cache;
  c.batch = q.size(0);
  a.q_heads = q.size(1);
  a.q_tokens = q.size(2);
  c.head_dim = q.size(3);
  SPARSECORE_REQUIRE(kv_is_head_dim(c.head_dim), "q: head_dim must be in [32, 256] and a multiple of 8, not ",
                     c.head_dim);
  c.k = pool(c, {k_bitmask, "k_bitmask"}, {k_values, "k_values"}, {k_dense, "k_dense"});
  c.v = pool(c, {v_bitmask, "v_bitmask"}, {v_values, "v_values"}, {v_dense, "v_dense"});
  SPARSECORE_REQUIRE(a.q_heads >= c.kv_heads && a.q_heads % c.kv_heads == 0,
                     "q: must have a multiple of kv_heads = ", c.kv_heads, " heads, not ", a.q_heads);
  check_array(page_table, 2, "page_table");
  check_dtype(page_table, ScalarType::Int, "page_table");
  check_array(lengths, 1, "lengths");
  check_dtype(lengths, ScalarType::Int, "lengths");
  SPARSECORE_REQUIRE(page_table.size(0) == c.batch, "page_table: must have a row for each of ", c.batch,
                     " sequences, not ", page_table.size(0));
  SPARSECORE_REQUIRE(lengths.numel() == c.batch, "lengths: must have one for each of ", c.batch, " sequences, not ",
                     lengths.numel());
  c.columns = page_table.size(1);
  c.page_table = static_cast<const int32_t*>(page_table.const_data_ptr());
  c.lengths = static_cast<const int32_t*>(lengths.const_data_ptr());
  int64_t longest = 0, tokens = 0;
  for (int64_t i = 0; i < c.batch; ++i) {
    SPARSECORE_REQUIRE(kv_length_fits(c, i), "lengths: sequence ", i, " has ", c.lengths[i], " tokens, outside [0, ",
                       c.columns * c.page, "] that page_table has pages for");
    longest = std::max<int64_t>(longest, c.lengths[i]);
    tokens += c.lengths[i];
  }
  SPARSECORE_REQUIRE(window >= 0, "window: must be 0 (none) or the tokens that a query sees, not ", window);
  SPARSECORE_REQUIRE(softcap >= 0.0, "softcap: must be 0 (none) or above, not ", softcap);
  a.window = window;
  a.softcap = static_cast<float>(softcap);
  a.scale = static_cast<float>(scale ? *scale : 1.0 / __builtin_sqrt(static_cast<double>(c.head_dim)));
  if (bias) set_bias(a, *bias, longest);
  if (slopes) {
    check_array(*slopes, 1, "slopes");
    check_dtype(*slopes, ScalarType::Float, "slopes");
    SPARSECORE_REQUIRE(slopes->numel() == a.q_heads, "slopes: must have one for each of ", a.q_heads,
                       " query heads, not ", slopes->numel());
    a.slopes = static_cast<const float*>(slopes->const_data_ptr());
  }
  const Tensor out = empty_like_dtype(q, {c.batch, a.q_heads, a.q_tokens, c.head_dim});
  const Tensor lse = empty(Dtype::f32, {c.batch, a.q_heads, a.q_tokens});
  a.q = q.const_data_ptr();
  a.out = out.mutable_data_ptr();
  a.lse = static_cast<float*>(lse.mutable_data_ptr());
  a.splits = (longest + a.split_tokens() - 1) / a.split_tokens();

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
      "Tensor? bias=None, Tensor? slopes=None) -> (Tensor out, Tensor lse)");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) { m.impl("kv_attention", TORCH_BOX(&kv_attention)); }

}  // namespace sparsecore::kv_attention
