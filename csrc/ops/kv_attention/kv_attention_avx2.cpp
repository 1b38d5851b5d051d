// SPDX-License-Identifier: Apache-2.0
// kv_attention on AVX2: the loops over this ISA's expansion.
#include "cpu/simd/expand_avx2.h"
#include "ops/kv_attention/kv_attention.h"

namespace sparsecore::kv_attention {
namespace {
constexpr int kSumRegisters = 12;
}  // namespace
}  // namespace sparsecore::kv_attention

#include "ops/kv_attention/kv_attention_simd.h"

namespace sparsecore::kv_attention {
extern const Kernel kernel_avx2;
const Kernel kernel_avx2 = {"kv_attention_avx2", cpu::Isa::avx2, scratch_bytes, run, merge};
}  // namespace sparsecore::kv_attention
