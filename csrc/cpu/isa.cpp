// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace sparsecore::cpu {
namespace {

constexpr const char* kNames[] = {"scalar", "neon", "avx2", "avx512"};

#if defined(__x86_64__)
const char* x86_missing(bool avx512) {
  __builtin_cpu_init();
#define NEEDS(feature) \
  if (!__builtin_cpu_supports(feature)) return "this CPU lacks " feature
  NEEDS("avx2");
  NEEDS("fma");
  NEEDS("bmi");
  NEEDS("bmi2");
  NEEDS("popcnt");
  NEEDS("f16c");
  NEEDS("lzcnt");
  if (avx512) {
    NEEDS("avx512f");
    NEEDS("avx512bw");
    NEEDS("avx512dq");
    NEEDS("avx512vl");
    NEEDS("avx512vbmi");
    NEEDS("avx512vbmi2");
    NEEDS("avx512vnni");
  }
#undef NEEDS
  return nullptr;
}
#endif

// An unknown name in the variable is reported by Python at import; here it forces nothing.
int32_t from_environment() {
  Isa isa;
  const char* name = std::getenv("SPARSECORE_ISA");
  return name && isa_from_name(name, isa) && !isa_missing(isa) ? static_cast<int32_t>(isa) : -1;
}

std::atomic<int32_t>& forced() {
  static std::atomic<int32_t> value{from_environment()};
  return value;
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int32_t>(isa)]; }

bool isa_from_name(const char* name, Isa& isa) {
  for (int32_t i = 0; i < 4; ++i)
    if (std::strcmp(name, kNames[i]) == 0) {
      isa = static_cast<Isa>(i);
      return true;
    }
  return false;
}

const char* isa_missing(Isa isa) {
  if (isa == Isa::scalar) return nullptr;
#if defined(__x86_64__)
  static const char* const avx2 = x86_missing(false);
  static const char* const avx512 = x86_missing(true);
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512) return avx512;
  return "this is an x86-64 CPU";
#elif defined(__aarch64__)
  return isa == Isa::neon ? nullptr : "this is an ARM CPU";
#else
  return "no kernels are written for this CPU";
#endif
}

int32_t forced_isa() { return forced().load(std::memory_order_relaxed); }
void force_isa(int32_t isa) { forced().store(isa, std::memory_order_relaxed); }

}  // namespace sparsecore::cpu
