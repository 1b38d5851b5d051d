// SPDX-License-Identifier: Apache-2.0
#include "kv_op.h"
#include "ops/kv_decompress/kv_decompress.h"

namespace sparsecore::native {
namespace {

// A kernel on a device cannot refuse a row: it comes out NaN, first to last, which no sample stores.
Outcome run(const Call& call) {
  const auto [args, rows] = decompress_args<kv_decompress::Args>(call);
  on_device(call, [rows = rows](const Call& there, void* stream) {
    return kv_decompress::launch(decompress_args<kv_decompress::Args>(there).first, rows, stream);
  });
  const auto is_nan = [&args = args](int64_t i) {
    const float v = load_f32(args.dense, args.value, i);
    return v != v;
  };
  int64_t bad = -1;
  for (int64_t row = rows; row-- > 0;) {
    bool all = true;
    for (int64_t c = 0; c < args.head_dim; ++c) all &= is_nan(row * args.head_dim + c);
    if (all) bad = row;
  }
  return {{"bad_row", bad}, {"intact", 1}};
}

const bool registered = [] {
  variants().push_back({"kv_decompress", "kv_decompress_cuda", cpu::Isa::scalar, run, nullptr, true});
  return true;
}();

}  // namespace
}  // namespace sparsecore::native
