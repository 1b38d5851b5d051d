// SPDX-License-Identifier: Apache-2.0
// What op_cuda.cpp files share. No function here waits for the device.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "torch/arguments.h"

namespace sparsecore::binding {

using torch::stable::accelerator::DeviceGuard;

// `t` lies where `first`, the argument named, does.
inline void check_same_device(const Tensor& first, const char* first_name, const Tensor& t, const char* name) {
  check_device(t, name);
  SPARSECORE_REQUIRE(t.get_device_index() == first.get_device_index(), name, ": is on cuda:", t.get_device_index(),
                     ", but ", first_name, " is on cuda:", first.get_device_index());
}
inline void check_same_device(const Tensor& first, const char* first_name, const std::optional<Tensor>& t,
                              const char* name) {
  if (t) check_same_device(first, first_name, *t, name);
}

// torch's current stream on t's device, a cudaStream_t.
inline void* current_stream(const Tensor& t) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return stream;
}

// t, or a copy of it where its memory begins between multiples of `bytes`: kernels read words of so many.
inline Tensor aligned(const Tensor& t, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % bytes == 0 ? t : torch::stable::clone(t);
}

inline void check_launch(const char* error, const char* op) {
  SPARSECORE_REQUIRE(!error, op, ": the CUDA kernel did not start: ", error);
}

}  // namespace sparsecore::binding
