// SPDX-License-Identifier: Apache-2.0
// Adapters of the emulator's self tests: op "emulator", a kernel each, and op "products".
#include "self_tests.h"

#include "harness.h"

namespace sparsecore::native {
namespace {

Outcome run_products(const Call& call) {
  const Array &a = call.array("a"), &c = call.array("c");
  const int count = static_cast<int>(c.shape.at(0));
  on_device(call, [&](const Call& there, void* stream) {
    return self_tests::launch(
        {a.dtype == Dtype::bf16  ? 0
         : a.dtype == Dtype::f16 ? 1
                                 : 2,
         static_cast<int>(call.integer("selector", -1)), static_cast<int>(call.integer("loads", 0)), count,
         there.array("a").data, there.array("b").data, static_cast<const uint8_t*>(there.data_or_null("kept")),
         there.array("c").data},
        stream);
  });
  return {{"intact", 1}};
}

const bool registered = [] {
  variants().push_back({"products", "products", cpu::Isa::scalar, run_products, nullptr, true});
  for (int i = 0; i < self_tests::case_count; ++i) {
    const self_tests::Case& test = self_tests::cases[i];
    variants().push_back({"emulator", test.name, cpu::Isa::scalar,
                          [&test](const Call& call) -> Outcome {
                            on_device(call, [&test](const Call& there, void* stream) {
                              return test.launch(there.array("in").as<int>(), there.array("out").as<int>(), stream);
                            });
                            return {{"intact", 1}};
                          },
                          nullptr, true});
  }
  return true;
}();

}  // namespace
}  // namespace sparsecore::native
