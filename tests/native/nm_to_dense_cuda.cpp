// SPDX-License-Identifier: Apache-2.0
#include "nm_op.h"
#include "ops/nm_to_dense/nm_to_dense.h"

namespace sparsecore::native {
namespace {

// A kernel on a device cannot refuse a row: it comes out NaN, which no sample holds otherwise.
Outcome run(const Call& call) {
  const Array& dense = call.array("dense");
  const NmView w = nm_weight(call);
  if (dense.size() != w.n * w.k || dense.dtype != (w.scales ? Dtype::f32 : w.value))
    throw std::invalid_argument("values, scales and dense do not fit together");
  on_device(call, [](const Call& there, void* stream) {
    return nm_to_dense::launch({nm_weight(there), there.array("dense").data}, stream);
  });
  int64_t bad = -1;
  for (int64_t row = w.n; row-- > 0;)
    if (w.k == 0 ? nm_check_row(w, row).fault != NmFault::none  // no element to tell
                 : load_f32(dense.data, dense.dtype, row * w.k) != load_f32(dense.data, dense.dtype, row * w.k))
      bad = row;
  return {{"bad_row", bad}, {"intact", 1}};
}

const bool registered = [] {
  variants().push_back({"nm_to_dense", "nm_to_dense_cuda", cpu::Isa::scalar, run, nullptr, true});
  return true;
}();

}  // namespace
}  // namespace sparsecore::native
