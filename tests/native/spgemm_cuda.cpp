// SPDX-License-Identifier: Apache-2.0
//   a_..., b_..., n, outputs   as spgemm.cpp has them; values also bfloat16 and float16
//   blocks                     most blocks of a launch (3)
//   unsorted, unordered        1: rows of C may not rise; sums by atomics (0)
//   tables, slots              tables of rows past shared memory (0: none), and their size (8192)
//   given                      1: crow_indices and col_indices are inputs, untrusted; `values` alone is made
//   small                      1: nothing made; whether a row of `nonzeros` needs a table, and of how many slots
// What was made is given once more for the pattern as a caller's, and must be the same bits ("replayed").
#include <numeric>

#include "conversion_op.h"
#include "ops/spgemm/spgemm.h"

namespace sparsecore::native {
namespace {

using spgemm::DeviceArgs;
using spgemm::DeviceFound;
using spgemm::DevicePhase;

CsrView view(const Call& call, const std::string& side, int64_t width) {
  const Array &crow = call.array(side + "crow_indices"), &col = call.array(side + "col_indices");
  const Array* values = call.find(side + "values");
  return {crow.size() - 1, width,
          col.size(),      crow.data,
          col.data,        values ? values->data : nullptr,
          crow.dtype,      values ? values->dtype : Dtype::f32};
}

// A call with arrays of the adapter's own.
struct Extended {
  Call call;
  std::vector<Fenced> memory;

  void* add(const std::string& name, Dtype dtype, int64_t size, bool output) {
    memory.emplace_back(size * dtype_bytes(dtype), 8);
    call.arrays.push_back({name, dtype, {size}, memory.back().data(), output});
    return memory.back().data();
  }
  bool intact() const {
    for (const Fenced& m : memory)
      if (!m.intact()) return false;
    return true;
  }
};

void on_device(const Call& call, DevicePhase phase, const DeviceArgs& how, const std::string& a, const std::string& b,
               const std::string& c, const std::string& values) {
  on_device(call, [&](const Call& there, void* stream) {
    DeviceArgs d = how;
    d.a = view(there, a, 0);
    d.b = view(there, b, there.integer(c + "n", there.integer("n")));
    d.a.k = d.b.n;
    const int64_t nnz = how.c.nnz;
    d.c = view(there, c, d.b.k);
    d.c.values = there.data_or_null(values);
    d.c.nnz = nnz;
    d.c.value = d.a.value;
    d.found = static_cast<DeviceFound*>(there.array("found").data);
    d.scratch = there.array("scratch").data;
    d.tables = there.array("tables").data;
    return spgemm::launch(phase, d, stream);
  });
}

template <class Index>
void transpose(Extended& e, const std::string& side, const std::string& name, int64_t width) {
  const Array crow = e.call.array(side + "crow_indices"), col = e.call.array(side + "col_indices"),
              values = e.call.array(side + "values");
  const int64_t n = crow.size() - 1, bytes = dtype_bytes(values.dtype);
  const Index *const from = crow.as<Index>(), *const columns = col.as<Index>();
  Index* const to = static_cast<Index*>(e.add(name + "crow_indices", crow.dtype, width + 1, false));
  std::fill_n(to, width + 1, Index{0});
  for (int64_t p = from[0]; p < from[n]; ++p) ++to[columns[p] + 1];
  std::partial_sum(to, to + width + 1, to);
  Index* const rows = static_cast<Index*>(e.add(name + "col_indices", crow.dtype, to[width], false));
  char* const moved = static_cast<char*>(e.add(name + "values", values.dtype, to[width], false));
  std::vector<Index> next(to, to + width);
  for (int64_t row = 0; row < n; ++row)
    for (int64_t p = from[row]; p < from[row + 1]; ++p) {
      const Index at = next[static_cast<size_t>(columns[p])]++;
      rows[at] = static_cast<Index>(row);
      std::memcpy(moved + at * bytes, static_cast<char*>(values.data) + p * bytes, static_cast<size_t>(bytes));
    }
}

Outcome run(const Call& given) {
  if (given.integer("small", 0))
    return {{"slots", spgemm::device_table_slots(given.integer("nonzeros"))}, {"intact", 1}};
  Extended e{given, {}};
  const int64_t m = given.array("a_crow_indices").size() - 1, height = given.array("b_crow_indices").size() - 1;
  const Array* const values = given.find("values");
  const bool wide = values && values->dtype == Dtype::f64;
  const int64_t rows = std::max(m, height), tables = given.integer("tables", 0), slots = given.integer("slots", 8192);
  const auto* const found = static_cast<DeviceFound*>(e.add("found", Dtype::i64, sizeof(DeviceFound) / 8, true));
  e.add("scratch", Dtype::i64, (spgemm::device_scratch_bytes(rows) + 7) / 8, true);
  e.add("tables", Dtype::i64, tables * spgemm::device_table_bytes(wide ? Dtype::f64 : Dtype::f32, slots) / 8, true);
  DeviceArgs how{};
  how.table_slots = slots;
  how.table_count = tables;
  how.blocks = given.integer("blocks", 3);
  how.sorted = !given.integer("unsorted", 0);
  how.ordered = !given.integer("unordered", 0);
  how.a.index = how.c.index = given.array("a_crow_indices").dtype;
  if (given.integer("given", 0)) {
    how.given = true;
    how.c.nnz = given.array("col_indices").size();
    on_device(e.call, DevicePhase::values, how, "a_", "b_", "", "values");
    return {{"intact", e.intact()}, {"bad_row", -1}};
  }

  on_device(e.call, DevicePhase::count, how, "a_", "b_", "", "values");
  const int64_t bad = found->bad_offsets[1] != spgemm::kNoRow   ? m + static_cast<int64_t>(found->bad_offsets[1])
                      : found->bad_offsets[0] != spgemm::kNoRow ? static_cast<int64_t>(found->bad_offsets[0])
                      : found->bad_columns[1] != spgemm::kNoRow ? m + static_cast<int64_t>(found->bad_columns[1])
                      : found->bad_columns[0] != spgemm::kNoRow ? static_cast<int64_t>(found->bad_columns[0])
                                                                : -1;
  if (bad >= 0) return {{"bad_row", bad}, {"intact", e.intact()}};
  how.c.nnz = static_cast<int64_t>(found->nnz);
  Outcome outcome{
      {"bad_row", -1}, {"nnz", how.c.nnz}, {"strict", found->falls == found->starts}, {"intact", e.intact()}};
  for (int level = 0; level < spgemm::kDeviceLevels; ++level)
    for (int set = 0; set < 2; ++set)
      outcome[(set ? "nonzeros" : "products") + std::to_string(level)] = static_cast<int64_t>(found->rows[set][level]);
  if (how.c.nnz > given.array("col_indices").size()) return outcome;
  on_device(e.call, DevicePhase::columns, how, "a_", "b_", "", "values");
  if (!given.find("a_values")) return outcome;
  on_device(e.call, DevicePhase::values, how, "a_", "b_", "", "values");

  if (how.sorted || how.ordered) {
    const void* const again = e.add("again", values->dtype, values->size(), true);
    DeviceArgs once_more = how;
    once_more.given = true;
    on_device(e.call, DevicePhase::values, once_more, "a_", "b_", "", "again");
    const auto bytes = static_cast<size_t>(how.c.nnz * dtype_bytes(values->dtype));
    outcome["replayed"] = !how.ordered || std::memcmp(again, values->data, bytes) == 0;
  }
  how.masked = true;
  for (const char* side : {"a_", "b_"}) {
    const std::string out = std::string("grad_") + side[0];
    if (!given.find(out)) continue;
    how.c.nnz = given.array(out).size();
    const bool of_a = side[0] == 'a', small = how.c.index == Dtype::i32;
    if (of_a)
      small ? transpose<int32_t>(e, "b_", "other_", given.integer("n"))
            : transpose<int64_t>(e, "b_", "other_", given.integer("n"));
    else small ? transpose<int32_t>(e, "a_", "first_", height) : transpose<int64_t>(e, "a_", "first_", height);
    e.call.integers[std::string(side) + "n"] = of_a ? height : given.integer("n");
    on_device(e.call, DevicePhase::values, how, of_a ? "" : "first_", of_a ? "other_" : "", side, out);
  }
  outcome["intact"] = e.intact() && (outcome.count("replayed") == 0 || outcome["replayed"]);
  return outcome;
}

const bool registered = [] {
  variants().push_back({"spgemm", "spgemm_cuda", cpu::Isa::scalar, run, nullptr, true, [](const Call& call) {
                          const Array* values = call.find("a_values");
                          return !values || (values->dtype != Dtype::c64 && values->dtype != Dtype::c128);
                        }});
  return true;
}();

}  // namespace
}  // namespace sparsecore::native
