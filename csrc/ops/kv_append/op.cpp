// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_append/kv_append_shared.h"

#include "torch/kv_append_arguments.h"
#include "torch/parallel.h"

namespace sparsecore::kv_append {
namespace {

using namespace binding;

// To find the channels of a row costs as much as so many multiply-adds a channel.
constexpr int64_t kCompressWork = 16;

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
  for (int64_t s = 0; s < a.batch; ++s)
    if (const Finding found = find_fault(a, s); found.fault != Fault::none) raise(a, s, found);
  int64_t compressed = 0;
  const Shared found = find_shared(a, compressed);
  switch (found.kind) {
    case Shared::none: return compressed;
    case Shared::columns:
      throw_message("page_table: columns ", found.first, " and ", found.second, " of sequence ", found.sequence,
                    " name dense page ", found.page, ", and column ", found.first,
                    " is not compressed before it is written again");
    case Shared::dense:
      throw_message("page_table: sequences ", found.first, " and ", found.second, " both change dense page ",
                    found.page);
    default: throw_message("targets: sequences ", found.first, " and ", found.second, " both name page ", found.page);
  }
}

void kv_append(const Tensor& k, const Tensor& v, const Tensor& k_bitmask, const Tensor& k_values, const Tensor& k_dense,
               const Tensor& v_bitmask, const Tensor& v_values, const Tensor& v_dense, const Tensor& page_table,
               const Tensor& lengths, const Tensor& targets, int64_t recent, const std::optional<Tensor>& k_weight,
               const std::optional<Tensor>& v_weight) {
  Args a{};
  const KvNew tokens = kv_appended(a, k, v, {{k_bitmask, k_values, k_dense}, {v_bitmask, v_values, v_dense}},
                                   page_table, lengths, targets, recent, k_weight, v_weight);
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
      "Tensor targets, int recent, Tensor? k_weight=None, Tensor? v_weight=None) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) { m.impl("kv_append", TORCH_BOX(&kv_append)); }

}  // namespace sparsecore::kv_append
