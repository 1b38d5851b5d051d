// SPDX-License-Identifier: Apache-2.0
// Instructions that CUDA C++ has no word for, one a function, sm_80 and later. Kernels use the headers beside this
// one. Tests that run kernels on a CPU put a header of the same name before it: every function here is there too.
#pragma once
#include "cuda/launch.h"

namespace sparsecore::cuda::ptx {

SPARSECORE_DEVICE float f16_to_f32(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

SPARSECORE_DEVICE uint16_t f32_to_f16(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

SPARSECORE_DEVICE uint16_t f32_to_bf16(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

// A load that others may race with: whole, and made each time it is asked for.
template <class T>
SPARSECORE_DEVICE T load_relaxed(const T* p) {
  return *static_cast<const volatile T*>(p);
}

using SharedAddress = uint32_t;
SPARSECORE_DEVICE SharedAddress shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// If a bit is set the 16 bits at `next`, which moves past them; else 0. Two predicated instructions: the compiler's own
// for `bits ? *next++ : 0` move the pointer by way of a second register.
SPARSECORE_DEVICE uint32_t take_shared(uint32_t bits, SharedAddress& next) {
  uint32_t value;
  asm volatile(
      "{\n"
      " .reg .pred p;\n"
      " setp.ne.b32 p, %2, 0;\n"
      " mov.b32 %0, 0;\n"
      " @p ld.shared.u16 %0, [%1];\n"
      " @p add.u32 %1, %1, 2;\n"
      "}"
      : "=&r"(value), "+r"(next)
      : "r"(bits));
  return value;
}

template <int Bytes>
SPARSECORE_DEVICE void cp_async(void* shared, const void* global, int valid) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  if constexpr (Bytes == 16)  // past L1: only 16 bytes can
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(valid)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(valid),
                 "n"(Bytes)
                 : "memory");
}

SPARSECORE_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int Pending>
SPARSECORE_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Lane l gives the address of row l % 8 (16 bytes, aligned) of 8x8 matrix l / 8 of 16-bit elements; register j gets
// elements (l / 4, 2 * (l % 4) and the next) of matrix j, of its transpose for ldmatrix_transposed.
SPARSECORE_DEVICE void ldmatrix(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

SPARSECORE_DEVICE void ldmatrix_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// An 8x8 matrix of 16-bit elements, of which lane l has (l / 4, 2 * (l % 4) and the next), transposed.
SPARSECORE_DEVICE uint32_t movmatrix(uint32_t r) {
  uint32_t transposed;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(r));
  return transposed;
}

// c += a · b; layouts are drawn in mma.h.
#define SPARSECORE_MMA(name, instruction, number, constraint)                                              \
  SPARSECORE_DEVICE void name(number(&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {             \
    asm("mma.sync.aligned." instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
        : constraint(c[0]), constraint(c[1]), constraint(c[2]), constraint(c[3])                           \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                               \
  }
SPARSECORE_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32", float, "+f")
SPARSECORE_MMA(mma_f16, "m16n8k16.row.col.f32.f16.f16.f32", float, "+f")
SPARSECORE_MMA(mma_s8, "m16n8k32.row.col.s32.s8.s8.s32", int, "+r")
#undef SPARSECORE_MMA

// The same with a 2:4 sparse: `a` holds the kept half, `kept` where it lies, in the lanes of each four that
// Selector names (16-bit elements: 0 or 1, a pair of lanes; 8-bit: 0, all four).
#define SPARSECORE_MMA_SP(name, instruction, number, constraint)                                              \
  template <int Selector>                                                                                     \
  SPARSECORE_DEVICE void name(number(&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t kept) { \
    asm("mma.sp::ordered_metadata.sync.aligned." instruction                                                  \
        " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"                \
        : constraint(c[0]), constraint(c[1]), constraint(c[2]), constraint(c[3])                              \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(kept),  \
          "n"(Selector));                                                                                     \
  }
SPARSECORE_MMA_SP(mma_sp_bf16, "m16n8k32.row.col.f32.bf16.bf16.f32", float, "+f")
SPARSECORE_MMA_SP(mma_sp_f16, "m16n8k32.row.col.f32.f16.f16.f32", float, "+f")
SPARSECORE_MMA_SP(mma_sp_s8, "m16n8k64.row.col.s32.s8.s8.s32", int, "+r")
#undef SPARSECORE_MMA_SP

}  // namespace sparsecore::cuda::ptx
