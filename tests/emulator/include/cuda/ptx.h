// SPDX-License-Identifier: Apache-2.0
// In place of csrc/cuda/ptx.h: the same functions, as the PTX ISA describes them. The whole of it but one-lane
// conversions waits for the warp, as the instructions do.
#pragma once
#include "core/dtype.h"
#include "cuda/launch.h"

namespace emulator {

// As ptx.h of csrc has them; registers by lane, the products of a warp at once. In mma.cpp.
enum class Input { bf16, f16, s8 };
void mma(Input input, void* c, const uint32_t* a, const uint32_t* b, Where where);
void mma_sparse(Input input, int selector, void* c, const uint32_t* a, const uint32_t* b, uint32_t kept, Where where);
void ldmatrix(bool transposed, uint32_t* r, const void* row, Where where);

}  // namespace emulator

namespace sparsecore::cuda::ptx {

inline float f16_to_f32(uint16_t bits) { return sparsecore::f16_to_f32(bits); }
inline uint16_t f32_to_f16(float value) { return sparsecore::f32_to_f16(value); }
// cvt.rn.bf16.f32 gives one NaN for all.
inline uint16_t f32_to_bf16(float value) { return value != value ? 0x7fff : sparsecore::f32_to_bf16(value); }

template <class T>
T load_relaxed(const T* p) {
  return emulator::atomic(const_cast<T*>(p), [](T there) { return there; });
}

using SharedAddress = const char*;
inline SharedAddress shared_address(const void* p) { return static_cast<const char*>(p); }
inline uint32_t take_shared(uint32_t bits, SharedAddress& next) {
  if (bits == 0) return 0;
  next += 2;
  return *reinterpret_cast<const uint16_t*>(next - 2);
}

template <int Bytes>
void cp_async(void* shared, const void* global, int valid) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  emulator::copy_async(shared, global, Bytes, valid);
}
inline void cp_async_commit() { emulator::copy_commit(); }
template <int Pending>
void cp_async_wait() {
  emulator::copy_wait(Pending);
}

inline void ldmatrix(uint32_t (&r)[4], const void* row, EMULATOR_WHERE) {
  emulator::ldmatrix(false, r, row, {file, line});
}
inline void ldmatrix_transposed(uint32_t (&r)[4], const void* row, EMULATOR_WHERE) {
  emulator::ldmatrix(true, r, row, {file, line});
}

inline uint32_t movmatrix(uint32_t r, EMULATOR_WHERE) {
  const int row = emulator::lane_index() / 4, from = emulator::lane_index() % 4 * 8 + row / 2, shift = row % 2 * 16;
  const uint32_t low = emulator::shuffle("movmatrix", 0xffffffffu, r, from, {file, line});
  const uint32_t high = emulator::shuffle("movmatrix", 0xffffffffu, r, from + 4, {file, line});
  return (low >> shift & 0xffff) | (high >> shift & 0xffff) << 16;
}

#define EMULATOR_MMA(input, number)                                                                                   \
  inline void mma_##input(number(&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATOR_WHERE) {            \
    emulator::mma(emulator::Input::input, c, a, b, {file, line});                                                     \
  }                                                                                                                   \
  template <int Selector>                                                                                             \
  void mma_sp_##input(number(&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t kept, EMULATOR_WHERE) { \
    static_assert(Selector == 0 || (Selector == 1 && emulator::Input::input != emulator::Input::s8));                 \
    emulator::mma_sparse(emulator::Input::input, Selector, c, a, b, kept, {file, line});                              \
  }
EMULATOR_MMA(bf16, float)
EMULATOR_MMA(f16, float)
EMULATOR_MMA(s8, int)
#undef EMULATOR_MMA

}  // namespace sparsecore::cuda::ptx
