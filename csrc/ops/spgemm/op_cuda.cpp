// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <tuple>

#include "ops/spgemm/spgemm.h"
#include "torch/cuda.h"
#include "torch/product_arguments.h"

namespace sparsecore::spgemm {
namespace {

using namespace binding;
using Optional = OptionalTensor;

constexpr int64_t kBlocks = 2048;  // of a launch: several for every processor of a device; they share the rows
constexpr int64_t kTables = 528;   // four for each of 132 processors
// Tables that are not worth asking the device about.
constexpr int64_t kSmallTables = 64 << 20;

// On the CPU; waits for the device.
Tensor fetch(const Tensor& t) {
  return torch::stable::to(t, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

// Says what is wrong with `row` of w, or with its ends.
void raise_on_host(const Tensor& crow, const Tensor& col, CsrView w, const CsrNames& names, int64_t row) {
  const Tensor host_crow = fetch(crow), host_col = fetch(col);
  w.crow = host_crow.const_data_ptr();
  w.col = host_col.const_data_ptr();
  raise(row < 0 ? csr_check_ends(w) : csr_check_row(w, row, false), w, names);
}

class Product {
 public:
  DeviceArgs args{};

  Product(const Tensor& a_crow, const Tensor& a_col, const Optional& a_values, const Tensor& b_crow,
          const Tensor& b_col, const Optional& b_values, int64_t n)
      : a_crow_(a_crow), a_col_(a_col), b_crow_(b_crow), b_col_(b_col), guard_(device_of(a_crow)) {
    check_same_device(a_crow, "a_crow_indices", a_col, "a_col_indices");
    check_same_device(a_crow, "a_crow_indices", a_values, "a_values");
    check_same_device(a_crow, "a_crow_indices", b_crow, "b_crow_indices");
    check_same_device(a_crow, "a_crow_indices", b_col, "b_col_indices");
    check_same_device(a_crow, "a_crow_indices", b_values, "b_values");
    const auto [a, b] = operands(a_crow, a_col, a_values, b_crow, b_col, b_values, n);
    SPARSECORE_REQUIRE(a.n <= std::numeric_limits<int32_t>::max(), "a_crow_indices: must have less than 2^31 rows");
    args.a = a;
    args.b = b;
    args.c = {a.n, n, 0, nullptr, nullptr, nullptr, a.index, a.value};
    args.blocks = kBlocks;
    args.sorted = args.ordered = true;
    found_ = empty(Dtype::i64, {static_cast<int64_t>(sizeof(DeviceFound) / sizeof(int64_t))});
    scratch_ = empty(Dtype::i64, {(device_scratch_bytes(a.n) + 7) / 8});
    args.found = static_cast<DeviceFound*>(found_.mutable_data_ptr());
    args.scratch = scratch_.mutable_data_ptr();
  }

  void run(DevicePhase phase) const { check_launch(launch(phase, args, current_stream(a_crow_)), "spgemm"); }

  // nnz(C) once it is counted, and the longest row's: the one time that a product waits for the device.
  DeviceFound counted() const {
    const Tensor host = fetch(found_);
    DeviceFound f;
    std::memcpy(&f, host.const_data_ptr(), sizeof(f));
    const auto refuse = [&](bool of_a, int64_t row) {
      const CsrNames& names = of_a ? kNamesA : kNamesB;
      of_a ? raise_on_host(a_crow_, a_col_, args.a, names, row) : raise_on_host(b_crow_, b_col_, args.b, names, row);
      SPARSECORE_REQUIRE(false, names.crow, ": changed while it was read");
    };
    for (int side = 0; side < 2; ++side) {
      if (f.bad_ends >> side & 1) refuse(side == 0, -1);
      if (f.bad_offsets[side] != kNoRow) refuse(side == 0, static_cast<int64_t>(f.bad_offsets[side]));
    }
    for (int side = 0; side < 2; ++side)
      if (f.bad_columns[side] != kNoRow) refuse(side == 0, static_cast<int64_t>(f.bad_columns[side]));
    return f;
  }

  // Tables for rows of up to `longest` nonzeros in at most `memory` bytes (0: chosen, for rows that are `known`).
  void reserve_tables(int64_t longest, int64_t memory, bool known) {
    int64_t slots = device_table_slots(longest);
    if (slots == 0) return;
    int64_t most = memory;
    if (memory == 0) most = known ? std::max(kSmallTables, device_free_bytes() / 4) : kSmallTables;
    const auto bytes = [&] { return device_table_bytes(args.a.value, slots); };
    while (bytes() > most && device_table_slots(slots / 2) > 0) slots /= 2;
    if (bytes() > most) return;
    args.table_slots = slots;
    args.table_count = std::min(kTables, most / bytes());
    tables_ = empty(Dtype::i64, {args.table_count * bytes() / 8});
    args.tables = tables_.mutable_data_ptr();
  }

 private:
  static int32_t device_of(const Tensor& t) {
    check_device(t, "a_crow_indices");
    return t.get_device_index();
  }

  Tensor a_crow_, a_col_, b_crow_, b_col_, found_, scratch_, tables_;
  const DeviceGuard guard_;
};

void check_memory(int64_t memory) {
  SPARSECORE_REQUIRE(memory >= 0, "memory: must be 0 or a number of bytes, not ", memory);
}

struct Output {
  Tensor crow, col;
  Optional values;
};

Output multiply(const Tensor& a_crow, const Tensor& a_col, const Optional& a_values, const Tensor& b_crow,
                const Tensor& b_col, const Optional& b_values, int64_t n, bool sorted, int64_t memory,
                bool deterministic) {
  check_memory(memory);
  Product product(a_crow, a_col, a_values, b_crow, b_col, b_values, n);
  DeviceArgs& args = product.args;
  args.sorted = sorted;
  args.ordered = deterministic;
  Output made{empty(args.a.index, {args.a.n + 1}), {}, {}};
  args.c.crow = made.crow.mutable_data_ptr();
  product.run(DevicePhase::count);
  const DeviceFound found = product.counted();
  args.c.nnz = static_cast<int64_t>(found.nnz);
  check_nonzeros(args.a, args.c.nnz);
  made.col = empty(args.a.index, {args.c.nnz});
  args.c.col = made.col.mutable_data_ptr();
  product.run(DevicePhase::columns);
  if (!a_values) return made;
  product.reserve_tables(static_cast<int64_t>(found.longest), memory, true);
  made.values = empty_like_dtype(*a_values, {args.c.nnz});
  args.c.values = made.values->mutable_data_ptr();
  product.run(DevicePhase::values);
  return made;
}

std::tuple<Tensor, Tensor, Tensor> spgemm(const Tensor& a_crow, const Tensor& a_col, const Tensor& a_values,
                                          const Tensor& b_crow, const Tensor& b_col, const Tensor& b_values, int64_t n,
                                          bool sorted, int64_t memory, bool deterministic) {
  const Output c = multiply(a_crow, a_col, a_values, b_crow, b_col, b_values, n, sorted, memory, deterministic);
  return {c.crow, c.col, *c.values};
}

std::tuple<Tensor, Tensor> pattern(const Tensor& a_crow, const Tensor& a_col, const Tensor& b_crow, const Tensor& b_col,
                                   int64_t n, int64_t memory) {
  const Output c = multiply(a_crow, a_col, std::nullopt, b_crow, b_col, std::nullopt, n, true, memory, true);
  return {c.crow, c.col};
}

Tensor at_columns(const Tensor& a_crow, const Tensor& a_col, const Tensor& a_values, const Tensor& b_crow,
                  const Tensor& b_col, const Tensor& b_values, const Tensor& crow, const Tensor& col, int64_t n,
                  int64_t memory, bool deterministic, bool masked) {
  check_memory(memory);
  Product product(a_crow, a_col, a_values, b_crow, b_col, b_values, n);
  DeviceArgs& args = product.args;
  check_same_device(a_crow, "a_crow_indices", crow, "crow_indices");
  check_same_device(a_crow, "a_crow_indices", col, "col_indices");
  args.c = pattern_of_c(args.a, crow, col, n);
  args.c.value = args.a.value;
  args.ordered = deterministic;
  args.masked = masked;
  args.given = !masked;
  product.reserve_tables(std::min(masked ? args.c.nnz : n, args.c.nnz), memory, false);
  const Tensor sums = empty_like_dtype(a_values, {args.c.nnz});
  args.c.values = sums.mutable_data_ptr();
  product.run(DevicePhase::values);
  return sums;
}

Tensor values(const Tensor& a_crow, const Tensor& a_col, const Tensor& a_values, const Tensor& b_crow,
              const Tensor& b_col, const Tensor& b_values, const Tensor& crow, const Tensor& col, int64_t n,
              int64_t memory, bool deterministic) {
  return at_columns(a_crow, a_col, a_values, b_crow, b_col, b_values, crow, col, n, memory, deterministic, false);
}

Tensor masked(const Tensor& a_crow, const Tensor& a_col, const Tensor& a_values, const Tensor& b_crow,
              const Tensor& b_col, const Tensor& b_values, const Tensor& crow, const Tensor& col, int64_t n) {
  return at_columns(a_crow, a_col, a_values, b_crow, b_col, b_values, crow, col, n, 0, true, true);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CUDA, m) {
  m.impl("spgemm", TORCH_BOX(&spgemm));
  m.impl("_spgemm", TORCH_BOX(&spgemm));
  m.impl("spgemm_pattern", TORCH_BOX(&pattern));
  m.impl("spgemm_values", TORCH_BOX(&values));
  m.impl("_spgemm_values", TORCH_BOX(&values));
  m.impl("_spgemm_masked", TORCH_BOX(&masked));
}

}  // namespace sparsecore::spgemm
