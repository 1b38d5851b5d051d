// SPDX-License-Identifier: Apache-2.0
#include "nm_op.h"
#include "ops/nm_compress/nm_compress.h"

namespace sparsecore::native {
namespace {

bool is_nan(const Array& a, int64_t i) {
  const float v = load_f32(a.data, a.dtype, i);
  return v != v;
}

// A kernel on a device cannot refuse a mask: NaN is stored, or the scale is NaN, in a row that has none.
Outcome run(const Call& call) {
  const auto args = compress_args<nm_compress::Args>(call);
  const Array &w = call.array("w"), &values = call.array("values");
  const int64_t rows = values.shape[0], per_row = values.shape[1] * values.shape[2];
  on_device(call, [&](const Call& there, void* stream) {
    return nm_compress::launch(compress_args<nm_compress::Args>(there), rows, stream);
  });
  int64_t bad = -1;
  for (int64_t row = rows; row-- > 0;) {
    bool made = args.scales && is_nan(call.array("scales"), row), given = false;
    for (int64_t i = 0; i < per_row; ++i) made |= is_nan(values, row * per_row + i);
    for (int64_t c = 0; c < args.k; ++c) given |= is_nan(w, row * args.stride + c);
    if (made && !given) bad = row;
  }
  return {{"bad_row", bad}, {"intact", 1}};
}

const bool registered = [] {
  variants().push_back({"nm_compress", "nm_compress_cuda", cpu::Isa::scalar, run, nullptr, true});
  return true;
}();

}  // namespace
}  // namespace sparsecore::native
