// SPDX-License-Identifier: Apache-2.0
#include "linear_op.h"
#include "nm_op.h"
#include "ops/spmm_nm/spmm_nm.h"

namespace sparsecore::native {
namespace {

// A kernel on a device cannot refuse a row of W: its column of y is NaN, which no sample gives otherwise.
Outcome run(const Call& call) {
  const NmView w = nm_weight(call);
  const Linear d = nm_linear(call, w.n);
  on_device(call, [&](const Call& there, void* stream) {
    return spmm_nm::launch(nm_linear(there, w.n), nm_weight(there), stream);
  });
  int64_t bad = -1;
  for (int64_t row = w.n; d.m > 0 && row-- > 0;) {
    const float first = load_f32(d.y, d.dtype, row);
    if (first != first) bad = row;
  }
  return {{"bad_row", bad}, {"intact", 1}};
}

const bool registered = [] {
  variants().push_back({"spmm_nm", "spmm_nm_cuda", cpu::Isa::scalar, run, nullptr, true});
  return true;
}();

}  // namespace
}  // namespace sparsecore::native
