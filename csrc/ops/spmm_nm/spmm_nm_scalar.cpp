// SPDX-License-Identifier: Apache-2.0
// spmm_nm in plain loops: the floor for every CPU and the oracle in C++.
#include "cpu/activation.h"
#include "ops/spmm_nm/spmm_nm.h"

namespace sparsecore::spmm_nm {
namespace {

Plan plan(const Linear&, const NmView&) { return {}; }
void pack(const Args&, int64_t, int64_t) {}

int64_t run(const Args& a, int64_t begin, int64_t end, void*) {
  const Linear& d = a.dense;
  const NmView& w = a.weight;
  for (int64_t row = begin; row < end; ++row) {
    if (nm_check_row(w, row).fault != NmFault::none) return row;
    const int64_t first = row * w.row_values();
    const float b = d.bias ? load_f32(d.bias, d.dtype, row) : 0.0f;
    const float scale = w.scales ? w.scales[row] : 1.0f;
    for (int64_t i = 0; i < d.m; ++i) {
      float sum = 0.0f;
      nm_row(w, row, [&](int64_t column, int64_t p) {
        sum += load_f32(w.values, w.value, first + p) * load_f32(d.x, d.dtype, i * d.x_stride + column);
      });
      float z = sum * scale + b;
      finish_row(d, i, row, &z, 1);
    }
  }
  return -1;
}

}  // namespace

extern const Kernel kernel_scalar;
const Kernel kernel_scalar = {"spmm_nm_scalar", cpu::Isa::scalar, plan, pack, run};

}  // namespace sparsecore::spmm_nm
