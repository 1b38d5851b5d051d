// SPDX-License-Identifier: Apache-2.0
// kv_attention on NEON: the loops over this ISA's expansion.
#include "cpu/simd/expand_neon.h"
#include "ops/kv_attention/kv_attention.h"

namespace sparsecore::kv_attention {
namespace {
constexpr int kSumRegisters = 24;
}  // namespace
}  // namespace sparsecore::kv_attention

#include "ops/kv_attention/kv_attention_simd.h"

namespace sparsecore::kv_attention {
extern const Kernel kernel_neon;
const Kernel kernel_neon = {"kv_attention_neon", cpu::Isa::neon, scratch_bytes, run, merge};
}  // namespace sparsecore::kv_attention
