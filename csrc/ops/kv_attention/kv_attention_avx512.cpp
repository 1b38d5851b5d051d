// SPDX-License-Identifier: Apache-2.0
// kv_attention on AVX-512: the loops over this ISA's expansion.
#include "cpu/simd/expand_avx512.h"
#include "ops/kv_attention/kv_attention.h"

namespace sparsecore::kv_attention {
namespace {
constexpr int kSumRegisters = 24;
}  // namespace
}  // namespace sparsecore::kv_attention

#include "ops/kv_attention/kv_attention_simd.h"

namespace sparsecore::kv_attention {
extern const Kernel kernel_avx512;
const Kernel kernel_avx512 = {"kv_attention_avx512", cpu::Isa::avx512, scratch_bytes, run, merge};
}  // namespace sparsecore::kv_attention
