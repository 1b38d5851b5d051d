// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_append/kv_append.h"

#include "torch/kv_arguments.h"
#include "torch/parallel.h"

namespace sparsecore::kv_append {
namespace {

using namespace binding;

// To find the channels of a row costs as much as so many multiply-adds a channel.
constexpr int64_t kCompressWork = 16;

// x itself where channels are adjacent, else a copy.
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

void pool(Args& a, KvView& c, const KvTensor& bitmask, const KvTensor& values, const KvTensor& dense, ScalarType type,
          Half& half) {
  check_dtype(values.tensor, type, values.name);
  half.keep = kv_pool(c, bitmask, values, dense).keep;
  SPARSECORE_REQUIRE(c.kv_heads == a.kv_heads, values.name, ": dimension 1 must be ", a.kv_heads, " (as k), not ",
                     c.kv_heads);
  half.bitmask = static_cast<uint8_t*>(bitmask.tensor.mutable_data_ptr());
  half.values = values.tensor.mutable_data_ptr();
  half.dense = dense.tensor.mutable_data_ptr();
}

int32_t* table(const Args& a, const KvTensor& t, int64_t dims, const char* what) {
  check_array(t.tensor, dims, t.name);
  check_dtype(t.tensor, ScalarType::Int, t.name);
  SPARSECORE_REQUIRE(t.tensor.size(0) == a.batch, t.name, ": must have ", what, " for each of ", a.batch,
                     " sequences, not ", t.tensor.size(0));
  return static_cast<int32_t*>(t.tensor.mutable_data_ptr());
}

// No array that changes lies over another one; the first `changed` of `all` do.
void check_apart(const std::vector<KvTensor>& all, size_t changed) {
  std::vector<std::pair<const char*, const char*>> spans;
  for (const KvTensor& t : all) spans.push_back(byte_span(t.tensor));
  for (size_t i = 0; i < changed; ++i)
    for (size_t j = i + 1; j < all.size(); ++j)
      SPARSECORE_REQUIRE(spans[i].first >= spans[j].second || spans[j].first >= spans[i].second, all[i].name,
                         ": overlaps ", all[j].name, " in memory");
}

[[noreturn]] void raise(const Args& a, int64_t sequence, const Finding& f) {
  switch (f.fault) {
    case Fault::length:
      throw_message("lengths: sequence ", sequence, " has ", f.value, " tokens, and with ", a.tokens,
                    " more it is outside [0, ", a.columns * a.page, "] that page_table has pages for");
    case Fault::target:
      throw_message("targets: column ", f.column, " of sequence ", sequence, " is to become page ", f.value, " of ",
                    a.pages);
    case Fault::leaving:
      throw_message("page_table: sequence ", sequence, " has entry ", f.value, " for column ", f.column,
                    ", which is to be compressed, outside ", a.pages, " compressed and ", a.dense_pages,
                    " dense pages");
    default:
      throw_message("page_table: sequence ", sequence, " has entry ", f.value, " for column ", f.column,
                    ", which gets tokens, and not one of ", a.dense_pages, " dense pages");
  }
}

// Checks every sequence; returns how many pages are compressed.
int64_t check_tables(const Args& a) {
  std::vector<std::pair<int64_t, int64_t>> changed;  // (entry of a page that is written, sequence)
  int64_t compressed = 0;
  for (int64_t s = 0; s < a.batch; ++s) {
    const Finding found = find_fault(a, s);
    if (found.fault != Fault::none) raise(a, s, found);
    const Columns columns = columns_of(a, s);
    for (int64_t column = columns.begin; column < columns.end; ++column) {
      changed.emplace_back(a.entry(s, column), s);
      const int64_t old = column < columns.fresh ? -1 : a.leaving(s, column);
      if (old < 0) continue;
      ++compressed;
      changed.emplace_back(a.entry(s, old), s);
      changed.emplace_back(a.targets[s * a.columns + old], s);
    }
  }
  std::sort(changed.begin(), changed.end());
  for (size_t i = 1; i < changed.size(); ++i) {
    const auto& [entry, s] = changed[i - 1];
    const auto& [same, other] = changed[i];
    if (entry != same || (entry < 0 && s == other)) continue;  // a ring's page may change twice
    SPARSECORE_REQUIRE(entry < 0, "targets: sequences ", s, " and ", other, " both name page ", entry);
    throw_message("page_table: sequences ", s, " and ", other, " both change dense page ", -2 - entry);
  }
  return compressed;
}

void kv_append(const Tensor& k, const Tensor& v, const Tensor& k_bitmask, const Tensor& k_values, const Tensor& k_dense,
               const Tensor& v_bitmask, const Tensor& v_values, const Tensor& v_dense, const Tensor& page_table,
               const Tensor& lengths, const Tensor& targets, int64_t recent) {
  Args a{};
  const Tensor new_k = new_tokens(a, {k, "k"}, a.k), new_v = new_tokens(a, {v, "v"}, a.v);
  KvView c{};
  c.head_dim = a.head_dim;
  pool(a, c, {k_bitmask, "k_bitmask"}, {k_values, "k_values"}, {k_dense, "k_dense"}, k.scalar_type(), a.k);
  pool(a, c, {v_bitmask, "v_bitmask"}, {v_values, "v_values"}, {v_dense, "v_dense"}, k.scalar_type(), a.v);
  a.page = c.page;
  a.pages = c.pages;
  a.dense_pages = c.dense_pages;
  a.page_table = table(a, {page_table, "page_table"}, 2, "a row");
  a.columns = page_table.size(1);
  a.lengths = table(a, {lengths, "lengths"}, 1, "one");
  a.targets = table(a, {targets, "targets"}, 2, "a row");
  SPARSECORE_REQUIRE(targets.size(1) == a.columns, "targets: must have ", a.columns, " columns as page_table, not ",
                     targets.size(1));
  SPARSECORE_REQUIRE(recent >= 1, "recent: must be at least the page that fills, 1, not ", recent);
  a.recent = std::min(recent, a.columns);
  check_apart({{k_bitmask, "k_bitmask"},
               {k_values, "k_values"},
               {k_dense, "k_dense"},
               {v_bitmask, "v_bitmask"},
               {v_values, "v_values"},
               {v_dense, "v_dense"},
               {page_table, "page_table"},
               {lengths, "lengths"},
               {k, "k"},
               {v, "v"},
               {targets, "targets"}},
              8);
  const int64_t compressed = check_tables(a);

  const Kernel& kernel = cpu::choose(kernels());
  note_kernel(kernel.name);
  const int64_t work = a.batch * a.tokens + compressed * a.page * kCompressWork;
  for_pieces(a.tasks(), thread_count(work * a.kv_heads * 2 * a.head_dim),
             [&](int64_t task, int64_t) { kernel.run(a, task); });
  for (int64_t s = 0; s < a.batch; ++s) advance(a, s);
}

const bool registered = register_kernels("kv_append", kernels());

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def(
      "kv_append(Tensor k, Tensor v, Tensor(a!) k_bitmask, Tensor(b!) k_values, Tensor(c!) k_dense, "
      "Tensor(d!) v_bitmask, Tensor(e!) v_values, Tensor(f!) v_dense, Tensor(g!) page_table, Tensor(h!) lengths, "
      "Tensor targets, int recent) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) { m.impl("kv_append", TORCH_BOX(&kv_append)); }

}  // namespace sparsecore::kv_append
