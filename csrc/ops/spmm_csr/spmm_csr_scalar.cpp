// SPDX-License-Identifier: Apache-2.0
// spmm_csr in plain loops: the floor for every CPU and the oracle in C++.
#include "ops/spmm_csr/spmm_csr.h"

namespace sparsecore::spmm_csr {
namespace {

Plan plan(const Linear&, const CsrView&) { return {}; }
void pack(const Args&, int64_t, int64_t) {}

int64_t run(const Args& a, int64_t begin, int64_t end, void*) {
  const Linear& d = a.dense;
  const CsrView& w = a.weight;
  for (int64_t row = begin; row < end; ++row) {
    if (csr_check_row(w, row).fault != CsrFault::none) return row;
    const float b = d.bias ? load_f32(d.bias, d.dtype, row) : 0.0f;
    for (int64_t i = 0; i < d.m; ++i) {
      float sum = 0.0f;
      for (int64_t p = w.offset(row); p < w.offset(row + 1); ++p)
        sum += load_f32(w.values, w.value, p) * load_f32(d.x, d.dtype, i * d.x_stride + w.column(p));
      store_f32(d.y, d.dtype, i * d.y_stride + row, sum + b);
    }
  }
  return -1;
}

}  // namespace

extern const Kernel kernel_scalar;
const Kernel kernel_scalar = {"spmm_csr_scalar", cpu::Isa::scalar, plan, pack, run};

}  // namespace sparsecore::spmm_csr
