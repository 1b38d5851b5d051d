// SPDX-License-Identifier: Apache-2.0
// on_device of tests/native/harness.h on the emulated grid, in the call's own memory.
#include "../native/harness.h"
#include "emulator.h"

namespace sparsecore::native {

void on_device(const Call& call, const std::function<const char*(const Call&, void* stream)>& run) {
  std::vector<emulator::Buffer> buffers;
  for (const Array& a : call.arrays) buffers.push_back({a.name, a.data, a.bytes(), a.output});
  const emulator::Memory memory(std::move(buffers), static_cast<uint64_t>(call.integer("seed", 0)));
  if (const char* error = run(call, nullptr)) throw std::runtime_error(error);
}

}  // namespace sparsecore::native
