// SPDX-License-Identifier: Apache-2.0
#include "conversion_op.h"
#include "ops/bitmap_to_dense/bitmap_to_dense.h"

namespace sparsecore::native {
namespace {

// A kernel on a device cannot refuse a row: it comes out NaN, which no sample holds otherwise.
Outcome run(const Call& call) {
  const Array& dense = call.array("dense");
  const BitmapView w = bitmap_weight(call);
  if (dense.size() != w.n * w.k || dense.dtype != (w.value == Dtype::i8 ? Dtype::f32 : w.value))
    throw std::invalid_argument("values, scales and dense do not fit together");
  on_device(call, [](const Call& there, void* stream) {
    return bitmap_to_dense::launch({bitmap_weight(there), there.array("dense").data}, stream);
  });
  int64_t bad = -1;
  for (int64_t row = w.n; row-- > 0;)
    if (w.k == 0 ? bitmap_check_row(w, row).fault != BitmapFault::none  // no element to tell
                 : load_f32(dense.data, dense.dtype, row * w.k) != load_f32(dense.data, dense.dtype, row * w.k))
      bad = row;
  return {{"bad_row", bad}, {"intact", 1}};
}

const bool registered = [] {
  variants().push_back({"bitmap_to_dense", "bitmap_to_dense_cuda", cpu::Isa::scalar, run, nullptr, true});
  return true;
}();

}  // namespace
}  // namespace sparsecore::native
