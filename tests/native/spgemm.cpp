// SPDX-License-Identifier: Apache-2.0
//   a_crow_indices, a_col_indices, a_values or absent, b_..., integer n
//   crow_indices [m + 1], col_indices, values     outputs, the latter two of any size that holds C
//   grad_a, grad_b       outputs or absent: the gradients where C's is C's own values
//   pieces, parts        row ranges (1); parts that the row of most products is cut into (0)
//   bytes                most bytes of scratch
//   words                0: B's words are not listed where nothing needs them
//   row                  open this row alone: of A, or m + row of B
// What fill gave is given once more by values, and must be the same bits ("replayed").
#include "ops/spgemm/spgemm.h"

#include "conversion_op.h"

namespace sparsecore::native {
namespace {

using spgemm::Args;
using spgemm::Kernel;
using spgemm::Task;

CsrView view(const Call& call, const std::string& side, int64_t width) {
  const Array &crow = call.array(side + "_crow_indices"), &col = call.array(side + "_col_indices");
  const Array* values = call.find(side + "_values");
  if (crow.dtype != col.dtype || crow.size() < 1 || (values && values->size() != col.size()))
    throw std::invalid_argument(side + ": arrays do not fit together");
  return {crow.size() - 1, width,
          col.size(),      crow.data,
          col.data,        values ? values->data : nullptr,
          crow.dtype,      values ? values->dtype : Dtype::f32};
}

struct Zeros : Fenced {
  explicit Zeros(int64_t bytes) : Fenced(bytes, 64) { std::memset(data(), 0, static_cast<size_t>(bytes)); }
};

std::vector<Task> cut(const Args& a, int64_t pieces, int64_t parts) {
  std::vector<Task> tasks;
  const int64_t m = a.a.n, words = (a.b.k + 63) / 64;
  int64_t heavy = -1;
  for (int64_t row = 0; row < m && parts > 0 && a.strict; ++row)
    if (a.work[row + 1] > a.work[row] &&
        (heavy < 0 || a.work[row + 1] - a.work[row] > a.work[heavy + 1] - a.work[heavy]))
      heavy = row;
  for (int64_t p = 0; p < pieces; ++p) {
    const int64_t begin = m * p / pieces, end = m * (p + 1) / pieces;
    if (heavy < begin || heavy >= end) {
      tasks.push_back({begin, end});
      continue;
    }
    tasks.push_back({begin, heavy});
    const int64_t count = std::min(parts, words);
    for (int64_t i = 0; i < count; ++i) tasks.push_back({heavy, heavy + 1, words * i / count, words * (i + 1) / count});
    tasks.push_back({heavy + 1, end});
  }
  return tasks;
}

Outcome refused(int64_t row) { return {{"bad_row", row}, {"intact", 1}}; }

Outcome run(const Kernel& kernel, const Call& call) {
  Args a{};
  a.b = view(call, "b", call.integer("n"));
  a.a = view(call, "a", a.b.n);
  if (a.a.index != a.b.index || !a.a.values != !a.b.values || a.a.value != a.b.value)
    throw std::invalid_argument("a and b do not fit together");
  const int64_t m = a.a.n, nnz_b = a.b.nnz;
  const Fenced work(8 * (m + 1), 8), word(4 * nnz_b, 4), bits(8 * nnz_b, 8);
  const Fenced rows(static_cast<int64_t>(sizeof(spgemm::WordRow)) * a.b.n, 8);
  a.work = static_cast<int64_t*>(work.data());
  a.words = {static_cast<int32_t*>(word.data()), static_cast<uint64_t*>(bits.data()),
             static_cast<spgemm::WordRow*>(rows.data())};
  spgemm::Found found;
  if (const int64_t only = call.integer("row", -1); only >= 0) {
    const int64_t bad = only < m ? kernel.open_a(a, only, only + 1) : kernel.open_b(a, only - m, only - m + 1, found);
    return refused(bad < 0 ? -1 : only);
  }
  const int64_t limit = call.integer("bytes", INT64_MAX);
  const int64_t bad_a = kernel.open_a(a, 0, m);
  uint64_t total = 0;  // B is unchecked: its offsets may be wild
  int64_t longest = 0;
  a.work[0] = 0;
  for (int64_t row = 0; row < m && bad_a < 0; ++row) {
    longest = std::max(longest, a.work[row + 1]);
    a.work[row + 1] = static_cast<int64_t>(total += static_cast<uint64_t>(a.work[row + 1]));
  }
  const bool may_need = call.integer("words", 1) != 0 || call.integer("parts", 0) > 0 || limit != INT64_MAX;
  if (bad_a < 0 && !may_need && !kernel.needs_words(a)) a.words = {};
  const int64_t bad_b = kernel.open_b(a, 0, a.b.n, found);
  if (bad_b >= 0) return refused(m + bad_b);
  if (bad_a >= 0) return refused(bad_a);
  a.strict = found.strict;
  a.sorted = true;
  int64_t bytes = kernel.plan(a, found.words, longest, limit);

  bool intact = true;
  std::vector<Task> tasks = cut(a, call.integer("pieces", 1), call.integer("parts", 0));
  const auto each = [&](const auto& fn) {
    for (Task& t : tasks) {
      const Zeros scratch(bytes);
      fn(t, scratch.data());
      intact &= scratch.intact();
    }
  };
  const Array &crow = call.array("crow_indices"), &col = call.array("col_indices");
  const Array* values = call.find("values");
  a.crow = crow.data;
  a.col = col.data;
  a.values = a.a.values ? values->data : nullptr;
  a.counted = true;
  each([&](Task& t, void* scratch) { kernel.count(a, t, scratch); });
  a.nnz = kernel.offsets(a, tasks.data(), static_cast<int64_t>(tasks.size()));
  Outcome outcome{{"bad_row", -1},
                  {"nnz", a.nnz},
                  {"sums", static_cast<int64_t>(a.sums)},
                  {"window", a.window},
                  {"most_hashed", a.most_hashed},
                  {"strict", a.strict},
                  {"words", a.words.word != nullptr},
                  {"bytes", bytes}};
  if (a.nnz > col.size()) {
    outcome["intact"] = 1;
    return outcome;
  }
  each([&](Task& t, void* scratch) { kernel.fill(a, t, scratch); });
  if (a.a.values) {
    const int64_t size = a.nnz * dtype_bytes(a.a.value);
    const Fenced again(size, 16);
    a.values = again.data();
    int64_t bad = -1;
    each([&](Task& t, void* scratch) { bad = bad < 0 ? kernel.values(a, t, scratch) : bad; });
    outcome["replayed"] = bad < 0 && std::memcmp(again.data(), values->data, static_cast<size_t>(size)) == 0;
    intact &= again.intact();
  }
  for (const char* side : {"grad_a", "grad_b"}) {
    const Array* out = call.find(side);
    if (!out) continue;
    const spgemm::Gradients g{
        a.a, a.b, {m, a.b.k, a.nnz, crow.data, col.data, values->data, a.a.index, a.a.value}, out->data};
    const auto kernel_run = side[5] == 'a' ? kernel.for_a : kernel.for_b;
    const int64_t rows = side[5] == 'a' ? m : a.b.n, pieces = call.integer("pieces", 1);
    for (int64_t p = 0; p < pieces; ++p) {
      const Zeros scratch(a.b.k * dtype_bytes(a.a.value));
      if (kernel_run(g, rows * p / pieces, rows * (p + 1) / pieces, scratch.data()) >= 0) outcome["replayed"] = 0;
      intact &= scratch.intact();
    }
  }
  outcome["intact"] = intact && work.intact() && word.intact() && bits.intact() && rows.intact() &&
                      (!a.a.values || outcome["replayed"]);
  return outcome;
}

template <class Index>
void fill(Index* crow, Index* col, const std::vector<std::vector<int64_t>>& rows) {
  int64_t p = 0;
  *crow++ = 0;
  for (const auto& row : rows) {
    for (int64_t c : row) col[p++] = static_cast<Index>(c);
    *crow++ = static_cast<Index>(p);
  }
}

// Adds a matrix and returns its rows; now and then unsorted, with columns repeated.
std::vector<std::vector<int64_t>> add_matrix(Random& random, Sample& s, const std::string& side, int64_t n, int64_t k,
                                             Dtype index, Dtype value) {
  const int64_t keep = below(random, 101), order = below(random, 4);
  std::vector<std::vector<int64_t>> rows(static_cast<size_t>(n));
  int64_t nnz = 0;
  for (auto& row : rows) {
    if (k > 2000) {
      for (int64_t i = below(random, 8); i > 0; --i) row.push_back(below(random, k));
      std::sort(row.begin(), row.end());
      row.erase(std::unique(row.begin(), row.end()), row.end());
    } else {
      const int64_t here = below(random, 4) == 0 ? below(random, 101) : keep;
      for (int64_t c = 0; c < k; ++c)
        if (below(random, 100) < here) row.push_back(c);
    }
    if (order == 0 && !row.empty()) {
      row.push_back(row[static_cast<size_t>(below(random, static_cast<int64_t>(row.size())))]);
      std::shuffle(row.begin(), row.end(), random);
    }
    nnz += static_cast<int64_t>(row.size());
  }
  void* crow = s.add<void>(side + "_crow_indices", index, {n + 1});
  void* col = s.add<void>(side + "_col_indices", index, {nnz});
  if (index == Dtype::i32) fill(static_cast<int32_t*>(crow), static_cast<int32_t*>(col), rows);
  else fill(static_cast<int64_t*>(crow), static_cast<int64_t*>(col), rows);
  void* values = s.add<void>(side + "_values", value, {nnz});
  const bool wide = value == Dtype::f64 || value == Dtype::c128, two = value == Dtype::c64 || value == Dtype::c128;
  for (int64_t i = 0; i < nnz * (two ? 2 : 1); ++i) {  // quarters: exact in every type
    const double number = static_cast<double>(below(random, 9) - 4) / 4;
    if (wide) static_cast<double*>(values)[i] = number;
    else static_cast<float*>(values)[i] = static_cast<float>(number);
  }
  return rows;
}

Sample sample(Random& random) {
  const int64_t m = row_or_column_count(random, 30), k = 1 + below(random, 40);
  const int64_t n = random() % 8 == 0 ? 1 + below(random, 200000) : row_or_column_count(random, 300);
  const Dtype index = random() & 1 ? Dtype::i32 : Dtype::i64;
  const Dtype value = std::vector<Dtype>{Dtype::f32, Dtype::f64, Dtype::c64, Dtype::c128}[below(random, 4)];
  Sample s;
  const auto a = add_matrix(random, s, "a", m, k, index, value), b = add_matrix(random, s, "b", k, n, index, value);
  int64_t products = 0, nnz_a = 0, nnz_b = 0;
  for (const auto& row : a) {
    for (int64_t c : row) products += static_cast<int64_t>(b[static_cast<size_t>(c)].size());
    nnz_a += static_cast<int64_t>(row.size());
  }
  for (const auto& row : b) nnz_b += static_cast<int64_t>(row.size());
  s.add<void>("crow_indices", index, {m + 1}, true);
  s.add<void>("col_indices", index, {products}, true);
  s.add<void>("values", value, {products}, true);
  s.add<void>("grad_a", value, {nnz_a}, true);
  s.add<void>("grad_b", value, {nnz_b}, true);
  s.call.integers = {{"n", n}, {"pieces", 1 + below(random, 4)}};
  if (random() & 1) s.call.integers["parts"] = 1 + below(random, 5);
  if (random() & 1) s.call.integers["bytes"] = below(random, 40000);
  s.call.integers["words"] = below(random, 2);
  return s;
}

const bool registered = register_conversion("spgemm", spgemm::kernels(), run, sample);

}  // namespace
}  // namespace sparsecore::native
