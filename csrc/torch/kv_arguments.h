// SPDX-License-Identifier: Apache-2.0
// Tensors of compressed keys and values to raw views.
#pragma once
#include "core/kv.h"
#include "torch/arguments.h"

namespace sparsecore::binding {

struct KvCompressed {
  DenseInput x;  // what args.x points into
  Tensor bitmask, values;
};

// Checks the arguments of kv_compress, allocates its outputs and fills `args`.
template <class Args>
KvCompressed kv_compressed(Args& args, const Tensor& x, int64_t keep, const std::optional<Tensor>& weight) {
  check_device(x, "x");
  SPARSECORE_REQUIRE(x.dim() >= 1, "x: must have at least one dimension, [..., head_dim]");
  args.value = float_dtype(x, "x");
  const int64_t d = args.head_dim = x.size(x.dim() - 1);
  SPARSECORE_REQUIRE(kv_is_head_dim(d), "x: head_dim must be in [32, 256] and a multiple of 8, not ", d);
  SPARSECORE_REQUIRE(keep >= 0 && keep <= d, "keep: must be in [0, head_dim = ", d, "], not ", keep);
  args.keep = keep;
  if (weight) {
    const int64_t dims = weight->dim(), most = x.dim() > 1 ? x.dim() - 1 : 1;
    SPARSECORE_REQUIRE(dims >= 1 && dims <= most, "weight: must have 1 to ", most, " dimensions, not ", dims);
    check_array(*weight, dims, "weight");
    check_dtype(*weight, ScalarType::Float, "weight");
    for (int64_t i = 1; i <= dims; ++i) {
      const int64_t size = i == 1 ? d : x.size(x.dim() - 1 - i);
      SPARSECORE_REQUIRE(weight->size(dims - i) == size, "weight: dimension ", dims - i, " must be ", size,
                         " as that of x, whose tokens are left out, not ", weight->size(dims - i));
    }
    args.weight = static_cast<const float*>(weight->const_data_ptr());
    args.weights = weight->numel() / d;
    args.tokens = x.dim() > 1 ? x.size(x.dim() - 2) : 1;
  }
  DenseInput in = dense_input(x);
  args.x = in.x.const_data_ptr();
  args.stride = in.stride;
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = 4 * kv_words(d);
  Tensor bitmask = empty(aoti_torch_dtype_uint8(), sizes);
  sizes.back() = keep;
  Tensor values = empty_like_dtype(x, sizes);
  args.bitmask = static_cast<uint8_t*>(bitmask.mutable_data_ptr());
  args.values = values.mutable_data_ptr();
  return {in, bitmask, values};
}

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

struct KvTensor {
  const Tensor& tensor;
  const char* name;
};

inline void check_sizes(const KvTensor& t, const std::vector<int64_t>& sizes, const char* what) {
  for (size_t i = 0; i < sizes.size(); ++i)
    SPARSECORE_REQUIRE(t.tensor.size(static_cast<int64_t>(i)) == sizes[i], t.name, ": dimension ", i, " must be ",
                       sizes[i], " (", what, "), not ", t.tensor.size(static_cast<int64_t>(i)));
}

// Bits, values and dense pages of K, or of V, with their names; sizes that K has set are V's too.
inline KvPool kv_pool(KvView& c, const KvTensor& bitmask, const KvTensor& values, const KvTensor& dense) {
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
  check_sizes(dense, {c.dense_pages, c.kv_heads, c.page, c.head_dim}, "as values, and head_dim");
  return {static_cast<const uint8_t*>(bitmask.tensor.const_data_ptr()), values.tensor.const_data_ptr(),
          dense.tensor.const_data_ptr(), keep};
}

// Sets a.bias; that it has a number for each key is left to the caller, who may know how many there are.
template <class Args>
void kv_bias(Args& a, const Tensor& bias) {
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
  a.bias_strides[3] = bias.stride(3);
  a.bias_keys = bias.size(3);
  a.bias = static_cast<const float*>(bias.const_data_ptr());
}

struct KvTensors {
  const Tensor &bitmask, &values, &dense;
};
struct KvHalves {
  KvTensors k, v;
};

// Checks the arguments of kv_attention but what lies in them, and fills `a` but for outputs, splits and partial.
template <class Args>
void kv_attended(Args& a, const Tensor& q, const KvHalves& halves, const Tensor& page_table, const Tensor& lengths,
                 std::optional<double> scale, double softcap, int64_t window, const std::optional<Tensor>& bias,
                 const std::optional<Tensor>& slopes) {
  const auto& [k, v] = halves;
  check_array(q, 4, "q");
  a.query = float_dtype(q, "q");
  KvView& c = a.cache;
  c.batch = q.size(0);
  a.q_heads = q.size(1);
  a.q_tokens = q.size(2);
  c.head_dim = q.size(3);
  SPARSECORE_REQUIRE(kv_is_head_dim(c.head_dim), "q: head_dim must be in [32, 256] and a multiple of 8, not ",
                     c.head_dim);
  c.k = kv_pool(c, {k.bitmask, "k_bitmask"}, {k.values, "k_values"}, {k.dense, "k_dense"});
  c.v = kv_pool(c, {v.bitmask, "v_bitmask"}, {v.values, "v_values"}, {v.dense, "v_dense"});
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
  SPARSECORE_REQUIRE(window >= 0, "window: must be 0 (none) or the tokens that a query sees, not ", window);
  SPARSECORE_REQUIRE(softcap >= 0.0, "softcap: must be 0 (none) or above, not ", softcap);
  a.window = window;
  a.softcap = static_cast<float>(softcap);
  a.scale = static_cast<float>(scale ? *scale : 1.0 / __builtin_sqrt(static_cast<double>(c.head_dim)));
  if (bias) kv_bias(a, *bias);
  if (slopes) {
    check_array(*slopes, 1, "slopes");
    check_dtype(*slopes, ScalarType::Float, "slopes");
    SPARSECORE_REQUIRE(slopes->numel() == a.q_heads, "slopes: must have one for each of ", a.q_heads,
                       " query heads, not ", slopes->numel());
    a.slopes = static_cast<const float*>(slopes->const_data_ptr());
  }
  a.q = q.const_data_ptr();
}

// Sets what is left out: selected, whose entries are left to the caller, and drop.
template <class Args>
void kv_skipped(Args& a, const std::optional<Tensor>& selected, double threshold) {
  SPARSECORE_REQUIRE(threshold >= 0.0 && threshold < 1.0, "threshold: must be in [0 (none), 1), not ", threshold);
  a.drop = threshold > 0.0 ? static_cast<float>(__builtin_log2(threshold)) : 0.0f;
  if (!selected) return;
  check_array(*selected, 3, "selected");
  check_dtype(*selected, ScalarType::Int, "selected");
  const int64_t sizes[] = {a.cache.batch, a.cache.kv_heads};
  for (int64_t i = 0; i < 2; ++i)
    SPARSECORE_REQUIRE(selected->size(i) == sizes[i], "selected: dimension ", i, " must be ", sizes[i],
                       " of [batch, kv_heads, count], not ", selected->size(i));
  SPARSECORE_REQUIRE(selected->size(2) <= a.cache.columns, "selected: must have at most the ", a.cache.columns,
                     " columns of page_table, not ", selected->size(2));
  static constexpr int32_t kNothing = kKvNoPage;  // of no elements, which may have no pointer
  a.selected_pages = selected->size(2);
  a.selected = selected->numel() > 0 ? static_cast<const int32_t*>(selected->const_data_ptr()) : &kNothing;
}

}  // namespace sparsecore::binding
