// SPDX-License-Identifier: Apache-2.0
#include "kv_op.h"
#include "ops/kv_compress/kv_compress.h"

namespace sparsecore::native {
namespace {

Outcome run(const Call& call) {
  const int64_t rows = compress_args<kv_compress::Args>(call).second;
  on_device(call, [&](const Call& there, void* stream) {
    return kv_compress::launch(compress_args<kv_compress::Args>(there).first, rows, stream);
  });
  return {{"bad_row", -1}, {"intact", 1}};
}

const bool registered = [] {
  variants().push_back({"kv_compress", "kv_compress_cuda", cpu::Isa::scalar, run, nullptr, true});
  return true;
}();

}  // namespace
}  // namespace sparsecore::native
