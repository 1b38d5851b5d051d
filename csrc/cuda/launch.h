// SPDX-License-Identifier: Apache-2.0
// Typed kernel launch. The first header a kernel file includes.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#define SPARSECORE_DEVICE __device__ __forceinline__
#define SPARSECORE_DEVICE_CALL __device__ __attribute__((noinline))  // for what is rare and long

namespace sparsecore::cuda {

struct Grid {
  dim3 blocks, threads;
  int64_t shared_bytes;  // dynamic
  void* stream;          // a cudaStream_t
};

// Queues kernel(arguments...), whose types must convert to the kernel's. No block: nothing is queued. Null, or
// the error's text. Asks for more than 48 KiB of dynamic shared memory where a kernel wants it; may be captured.
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), const Grid& grid, Arguments&&... arguments) {
  if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return nullptr;
  cudaError_t error = cudaSuccess;
  if (grid.shared_bytes > 48 * 1024)
    error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared_bytes));
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid.blocks;
    config.blockDim = grid.threads;
    config.dynamicSmemBytes = static_cast<size_t>(grid.shared_bytes);
    config.stream = static_cast<cudaStream_t>(grid.stream);
    error = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// The block's dynamic shared memory, 16-byte aligned, uninitialised.
template <class T>
SPARSECORE_DEVICE T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char sparsecore_dynamic_shared[];
  return reinterpret_cast<T*>(sparsecore_dynamic_shared);
}

}  // namespace sparsecore::cuda
