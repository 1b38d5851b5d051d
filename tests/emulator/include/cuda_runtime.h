// SPDX-License-Identifier: Apache-2.0
// In place of CUDA's header: the words of CUDA C++ that kernels use, for a host compiler. See emulator.h.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// One thread runs all of a grid's, a block after the other: its thread_local variables are the block's shared ones.
#define __shared__ thread_local

// Code of the emulator inside a kernel file: its accesses are not the kernel's.
#define EMULATOR_UNCHECKED __attribute__((no_sanitize("thread")))

namespace emulator {
template <Index (*Get)(), unsigned Index::* Field>
struct Coordinate {
  operator unsigned() const { return Get().*Field; }
};
template <Index (*Get)()>
struct BuiltIn {
  Coordinate<Get, &Index::x> x;
  Coordinate<Get, &Index::y> y;
  Coordinate<Get, &Index::z> z;
};
}  // namespace emulator

inline constexpr emulator::BuiltIn<&emulator::thread_index> threadIdx{};
inline constexpr emulator::BuiltIn<&emulator::block_index> blockIdx{};
inline constexpr emulator::BuiltIn<&emulator::block_size> blockDim{};
inline constexpr emulator::BuiltIn<&emulator::grid_size> gridDim{};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct uint2 {
  unsigned x, y;
} __align__(8);
constexpr uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }

// ---- Launch. An error of the emulated kernel is thrown as emulator::Fault.
enum cudaError_t { cudaSuccess };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t{1} << 30;
  return cudaSuccess;
}
namespace emulator {
template <class... Parameters>
struct Started {
  void (*kernel)(Parameters...);
  std::tuple<Parameters...> arguments;
  // Reads the arguments, which lie in no memory of the kernel's: not checked.
  EMULATOR_UNCHECKED static void thread(const void* started) {
    call(*static_cast<const Started*>(started), std::index_sequence_for<Parameters...>());
  }
  template <size_t... I>
  EMULATOR_UNCHECKED static void call(const Started& s, std::index_sequence<I...>) {
    s.kernel(std::get<I>(s.arguments)...);
  }
};
}  // namespace emulator

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* c, void (*kernel)(Parameters...), Arguments&&... arguments) {
  const emulator::Started<Parameters...> started{kernel, {std::forward<Arguments>(arguments)...}};
  emulator::run_grid({c->gridDim.x, c->gridDim.y, c->gridDim.z}, {c->blockDim.x, c->blockDim.y, c->blockDim.z},
                     static_cast<int64_t>(c->dynamicSmemBytes), &started.thread, &started);
  return cudaSuccess;
}

// ---- Barriers
#define EMULATOR_WHERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(EMULATOR_WHERE) {
  ::emulator::block_barrier(::emulator::BarrierResult::count, false, {file, line});
}
inline int __syncthreads_or(int condition, EMULATOR_WHERE) {
  return ::emulator::block_barrier(::emulator::BarrierResult::any, condition != 0, {file, line});
}
inline int __syncthreads_and(int condition, EMULATOR_WHERE) {
  return ::emulator::block_barrier(::emulator::BarrierResult::all, condition != 0, {file, line});
}
inline int __syncthreads_count(int condition, EMULATOR_WHERE) {
  return ::emulator::block_barrier(::emulator::BarrierResult::count, condition != 0, {file, line});
}
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_WHERE) { ::emulator::warp_barrier(mask, {file, line}); }

// ---- Warp collectives. Each lane brings `in`, and takes `out`, which is made of the others'.
namespace emulator {

template <class T>
struct Brought {
  T in, out;
  int from;
};

template <class T>
T shuffle(const char* name, unsigned mask, T value, int from, Where where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  Brought<T> mine{value, value, from};
  collective(
      name, mask, &mine,
      [](const Lanes& lanes) EMULATOR_UNCHECKED {
        for (int l = 0; l < 32; ++l)
          if (auto* b = lanes.of<Brought<T>>(l)) {
            const auto* source = lanes.of<Brought<T>>(b->from);
            if (!source) absent_lane(b->from);
            b->out = source->in;
          }
      },
      where);
  return mine.out;
}

inline unsigned ballot(const char* name, unsigned mask, bool condition, Where where) {
  Brought<unsigned> mine{condition, 0, 0};
  collective(
      name, mask, &mine,
      [](const Lanes& lanes) EMULATOR_UNCHECKED {
        unsigned set = 0;
        for (int l = 0; l < 32; ++l)
          if (auto* b = lanes.of<Brought<unsigned>>(l)) set |= b->in << l;
        for (int l = 0; l < 32; ++l)
          if (auto* b = lanes.of<Brought<unsigned>>(l)) b->out = set;
      },
      where);
  return mine.out;
}

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, EMULATOR_WHERE) {
  const int lane = ::emulator::lane_index();
  return ::emulator::shuffle("__shfl_sync", mask, value, (lane & ~(width - 1)) + (from & (width - 1)), {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_WHERE) {
  const int lane = ::emulator::lane_index(), from = lane - static_cast<int>(delta);
  return ::emulator::shuffle("__shfl_up_sync", mask, value, from < (lane & ~(width - 1)) ? lane : from, {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_WHERE) {
  const int lane = ::emulator::lane_index(), from = lane + static_cast<int>(delta);
  return ::emulator::shuffle("__shfl_down_sync", mask, value, from > (lane | (width - 1)) ? lane : from, {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMULATOR_WHERE) {
  const int lane = ::emulator::lane_index(), from = lane ^ bits;
  return ::emulator::shuffle("__shfl_xor_sync", mask, value, from > (lane | (width - 1)) ? lane : from, {file, line});
}
inline unsigned __ballot_sync(unsigned mask, int condition, EMULATOR_WHERE) {
  return ::emulator::ballot("__ballot_sync", mask, condition != 0, {file, line});
}
inline int __any_sync(unsigned mask, int condition, EMULATOR_WHERE) {
  return ::emulator::ballot("__any_sync", mask, condition != 0, {file, line}) != 0;
}
inline int __all_sync(unsigned mask, int condition, EMULATOR_WHERE) {
  return ::emulator::ballot("__all_sync", mask, condition != 0, {file, line}) == mask;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, EMULATOR_WHERE) {
  ::emulator::Brought<std::pair<T, unsigned>> mine{{value, 0}, {}, 0};
  ::emulator::collective("__match_any_sync", mask, &mine,
                         [](const ::emulator::Lanes& lanes) EMULATOR_UNCHECKED {
                           using Mine = ::emulator::Brought<std::pair<T, unsigned>>;
                           for (int l = 0; l < 32; ++l)
                             for (int other = 0; other < 32; ++other)
                               if (lanes.of<Mine>(l) && lanes.of<Mine>(other) &&
                                   lanes.of<Mine>(l)->in.first == lanes.of<Mine>(other)->in.first)
                                 lanes.of<Mine>(l)->out.second |= 1u << other;
                         },
                         {file, line});
  return mine.out.second;
}
inline int __reduce_add_sync(unsigned mask, int value, EMULATOR_WHERE) {
  ::emulator::Brought<int> mine{value, 0, 0};
  ::emulator::collective("__reduce_add_sync", mask, &mine,
                         [](const ::emulator::Lanes& lanes) EMULATOR_UNCHECKED {
                           int sum = 0;
                           for (int l = 0; l < 32; ++l)
                             if (auto* b = lanes.of<::emulator::Brought<int>>(l)) sum += b->in;
                           for (int l = 0; l < 32; ++l)
                             if (auto* b = lanes.of<::emulator::Brought<int>>(l)) b->out = sum;
                         },
                         {file, line});
  return mine.out;
}

// ---- Atomics: no other fiber runs meanwhile.
namespace emulator {
template <class T, class Change>
EMULATOR_UNCHECKED T atomic(T* p, const Change& change) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  atomic_access(p, sizeof(T));
  T before;
  std::memcpy(&before, p, sizeof(T));
  const T after = change(before);
  std::memcpy(p, &after, sizeof(T));
  return before;
}
}  // namespace emulator

template <class T>
EMULATOR_UNCHECKED T atomicAdd(T* p, std::type_identity_t<T> value) {
  return ::emulator::atomic(p, [=](T before) { return before + value; });
}
template <class T>
EMULATOR_UNCHECKED T atomicExch(T* p, std::type_identity_t<T> value) {
  return ::emulator::atomic(p, [=](T) { return value; });
}
template <class T>
EMULATOR_UNCHECKED T atomicMax(T* p, std::type_identity_t<T> value) {
  return ::emulator::atomic(p, [=](T before) { return before > value ? before : value; });
}
template <class T>
EMULATOR_UNCHECKED T atomicMin(T* p, std::type_identity_t<T> value) {
  return ::emulator::atomic(p, [=](T before) { return before < value ? before : value; });
}
template <class T>
EMULATOR_UNCHECKED T atomicOr(T* p, std::type_identity_t<T> value) {
  return ::emulator::atomic(p, [=](T before) { return before | value; });
}
template <class T>
EMULATOR_UNCHECKED T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return ::emulator::atomic(p, [=](T before) { return before == expected ? value : before; });
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- Arithmetic
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = low | static_cast<uint64_t>(high) << 32;
  unsigned made = 0;
  for (int i = 0; i < 4; ++i) made |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return made;
}
inline float __uint_as_float(unsigned v) {
  float f;
  std::memcpy(&f, &v, 4);
  return f;
}
inline unsigned __float_as_uint(float v) {
  unsigned u;
  std::memcpy(&u, &v, 4);
  return u;
}
inline double __longlong_as_double(long long v) {
  double d;
  std::memcpy(&d, &v, 8);
  return d;
}
template <class T>
T __ldg(const T* p) {
  return *p;
}
