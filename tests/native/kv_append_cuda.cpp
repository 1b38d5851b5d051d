// SPDX-License-Identifier: Apache-2.0
#include "kv_append_op.h"

namespace sparsecore::native {
namespace {

// A kernel on a device cannot refuse a sequence: its length is -1 afterwards. The first such is the bad row.
Outcome run(const Call& call) {
  on_device(call, [](const Call& there, void* stream) { return kv_append::launch(append_args(there), stream); });
  const Array& lengths = call.array("lengths");
  int64_t bad = -1;
  for (int64_t s = lengths.size(); s-- > 0;)
    if (lengths.as<int32_t>()[s] < 0) bad = s;
  return {{"bad_row", bad}, {"intact", 1}};
}

const bool registered = [] {
  variants().push_back({"kv_append", "kv_append_cuda", cpu::Isa::scalar, run, nullptr, true});
  return true;
}();

}  // namespace
}  // namespace sparsecore::native
