// SPDX-License-Identifier: Apache-2.0
// on_device of harness.h on the GPU: arrays are allocations of exactly their size, which compute-sanitizer watches.
#include <cuda_runtime_api.h>

#include "harness.h"

namespace sparsecore::native {
namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

class Allocation {
 public:
  explicit Allocation(const Array& a) : bytes_(static_cast<size_t>(a.bytes())) {
    check(cudaMalloc(&data_, bytes_ > 0 ? bytes_ : 1), "cudaMalloc");
    check(cudaMemcpy(data_, a.data, bytes_, cudaMemcpyHostToDevice), "copy to the device");
  }
  Allocation(Allocation&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  ~Allocation() { cudaFree(data_); }
  void* data() const { return data_; }
  void read(void* to) const { check(cudaMemcpy(to, data_, bytes_, cudaMemcpyDeviceToHost), "copy from the device"); }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

}  // namespace

void on_device(const Call& call, const std::function<const char*(const Call&, void* stream)>& run) {
  static cudaStream_t stream = [] {
    cudaStream_t made;
    check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "a stream");
    return made;
  }();
  Call there = call;
  std::vector<Allocation> memory;
  for (Array& a : there.arrays) {
    memory.emplace_back(a);
    a.data = memory.back().data();
  }
  check(cudaDeviceSynchronize(), "before the kernel");
  if (const char* error = run(there, stream)) throw std::runtime_error(error);
  check(cudaStreamSynchronize(stream), "the kernel");
  for (size_t i = 0; i < memory.size(); ++i) {
    const Array& a = call.arrays[i];
    if (a.output) {
      memory[i].read(a.data);
      continue;
    }
    std::string now(static_cast<size_t>(a.bytes()), '\0');
    memory[i].read(now.data());
    if (std::memcmp(now.data(), a.data, now.size()) != 0)
      throw std::runtime_error("writes to " + a.name + ", an input");
  }
}

}  // namespace sparsecore::native
