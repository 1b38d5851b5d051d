// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_append/kv_append.h"

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

// A column before `column` that has its dense page and tokens there still, or -1.
int64_t column_that_loses(const Args& a, int64_t sequence, int64_t column) {
  for (int64_t c = 0; c < column; ++c) {
    const bool left = c + a.recent <= column && a.targets[sequence * a.columns + c] >= 0;
    if (a.entry(sequence, c) == a.entry(sequence, column) && !left) return c;
  }
  return -1;
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
      const int64_t loser = column < columns.fresh ? -1 : column_that_loses(a, s, column);
      SPARSECORE_REQUIRE(loser < 0, "page_table: columns ", loser, " and ", column, " of sequence ", s,
                         " name dense page ", -2 - a.entry(s, column), ", and column ", loser,
                         " is not compressed before it is written again");
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
