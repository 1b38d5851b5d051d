// SPDX-License-Identifier: Apache-2.0
// torch.ops.sparsecore._kernels, _isa, _force_isa, _last_kernel: what Python's doctor and testing read.
#include "torch/registry.h"

#include <atomic>
#include <string>
#include <vector>

#include "torch/stable.h"

namespace sparsecore::binding {
namespace {

struct Entry {
  std::string op;
  Variant variant;
};

std::vector<Entry>& entries() {
  static std::vector<Entry> list;
  return list;
}

std::atomic<const char*> last_kernel{""};

// One line a variant: op, kernel, ISA, why this CPU can't run it (empty: it can).
std::string kernel_lines() {
  std::string out;
  for (const Entry& e : entries()) {
    const char* missing = cpu::isa_missing(e.variant.isa);
    out +=
        e.op + '\t' + e.variant.kernel + '\t' + cpu::isa_name(e.variant.isa) + '\t' + (missing ? missing : "") + '\n';
  }
  return out;
}

// The forced ISA, or "" when none is.
std::string forced_name() {
  const int32_t forced = cpu::forced_isa();
  return forced < 0 ? "" : cpu::isa_name(static_cast<cpu::Isa>(forced));
}

// "" lifts the force.
void force(std::string name) {
  if (name.empty()) {
    cpu::force_isa(-1);
    return;
  }
  cpu::Isa isa;
  SPARSECORE_REQUIRE(cpu::isa_from_name(name.c_str(), isa), "isa: '", name, "' is none of scalar, neon, avx2, avx512");
  const char* missing = cpu::isa_missing(isa);
  SPARSECORE_REQUIRE(!missing, "isa: '", name, "' can't run here: ", missing);
  cpu::force_isa(static_cast<int32_t>(isa));
}

std::string last() { return last_kernel.load(std::memory_order_relaxed); }

}  // namespace

void register_variant(const char* op, const Variant& variant) { entries().push_back({op, variant}); }
void note_kernel(const char* kernel) { last_kernel.store(kernel, std::memory_order_relaxed); }

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def("_kernels() -> str");
  m.def("_isa() -> str");
  m.def("_force_isa(str name) -> ()");
  m.def("_last_kernel() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CompositeExplicitAutograd, m) {
  m.impl("_kernels", TORCH_BOX(&kernel_lines));
  m.impl("_isa", TORCH_BOX(&forced_name));
  m.impl("_force_isa", TORCH_BOX(&force));
  m.impl("_last_kernel", TORCH_BOX(&last));
}

}  // namespace sparsecore::binding
