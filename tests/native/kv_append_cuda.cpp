// SPDX-License-Identifier: Apache-2.0
#include "kv_append_op.h"
#include "kv_append_shared.h"

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

// Whether each page is one column's: what others hold afterwards is not said.
bool apart(const Call& call) {
  const kv_append::Args a = append_args(call);
  for (int64_t s = 0; s < a.batch; ++s)
    if (kv_append::find_fault(a, s).fault != kv_append::Fault::none) return true;
  int64_t compressed = 0;
  return kv_append::find_shared(a, compressed).kind == kv_append::Shared::none;
}

const bool registered = [] {
  variants().push_back({"kv_append", "kv_append_cuda", cpu::Isa::scalar, run, nullptr, true, apart});
  return true;
}();

}  // namespace
}  // namespace sparsecore::native
