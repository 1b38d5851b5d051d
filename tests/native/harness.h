// SPDX-License-Identifier: Apache-2.0
// Kernel variants called by name with named arrays, past torch and the dispatcher.
//
//   <op>.cpp   adapter: maps a Call to the op's Args, runs plan, pack and run; registers its variants
//   <op>_cuda.cpp   the same for its CUDA kernels: see on_device
//   module.cpp, runner.cpp, fuzz.cpp   front ends, which know no op
//
// A new op adds its adapter and nothing else.
#pragma once
#include <sys/mman.h>
#include <unistd.h>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "cpu/isa.h"

namespace sparsecore::native {

constexpr unsigned char kPoison = 0xff;  // NaN in every float type, -1 in every integer

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kAddressSanitizer = true;
#else
constexpr bool kAddressSanitizer = false;
#endif

// Poisoned memory that ends at an inaccessible page, or as near as `align` allows; what lies between
// (and before, up to the page's begin) is poison that `intact` compares. Under AddressSanitizer a heap
// block of exactly that size, which also catches reads before and within the gap.
class Fenced {
 public:
  explicit Fenced(int64_t bytes, int64_t align = 1) : bytes_(bytes) {
    if (bytes < 0) throw std::length_error("negative size");
    if (kAddressSanitizer) {
      void* p = nullptr;
      if (posix_memalign(&p, static_cast<size_t>(align < 8 ? 8 : align), static_cast<size_t>(bytes)))
        throw std::bad_alloc();
      data_ = static_cast<unsigned char*>(p);
    } else {
      const int64_t page = sysconf(_SC_PAGESIZE);
      inside_ = (bytes + align) / page * page + page;
      void* p = mmap(nullptr, static_cast<size_t>(inside_ + page), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                     -1, 0);
      if (p == MAP_FAILED) throw std::bad_alloc();
      base_ = static_cast<unsigned char*>(p);
      mprotect(base_ + inside_, static_cast<size_t>(page), PROT_NONE);
      data_ = base_ + (inside_ - bytes) / align * align;
      std::memset(base_, kPoison, static_cast<size_t>(inside_));
    }
    std::memset(data_, kPoison, static_cast<size_t>(bytes));
  }
  Fenced(Fenced&& other) noexcept { *this = std::move(other); }
  Fenced& operator=(Fenced&& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(inside_, other.inside_);
    return *this;
  }
  ~Fenced() {
    if (kAddressSanitizer) std::free(data_);
    else if (base_) munmap(base_, static_cast<size_t>(inside_ + sysconf(_SC_PAGESIZE)));
  }

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

  // A write to the array then stops the process.
  void read_only() const {
    if (base_) mprotect(base_, static_cast<size_t>(inside_), PROT_READ);
  }
  bool intact() const {
    if (!base_) return true;
    for (const unsigned char* p = base_; p < base_ + inside_; ++p)
      if ((p < data_ || p >= data_ + bytes_) && *p != kPoison) return false;
    return true;
  }

 private:
  unsigned char* base_ = nullptr;
  unsigned char* data_ = nullptr;
  int64_t bytes_ = 0, inside_ = 0;
};

inline Dtype dtype_from_name(const std::string& name) {
  if (name == "uint8") return Dtype::i8;
  for (Dtype d : {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::i8, Dtype::i32, Dtype::i64, Dtype::f64, Dtype::c64,
                  Dtype::c128, Dtype::i16, Dtype::f8})
    if (name == dtype_name(d)) return d;
  throw std::invalid_argument("no dtype is named " + name);
}

struct Array {
  std::string name;
  Dtype dtype;
  std::vector<int64_t> shape;
  void* data;
  bool output;
  bool in_place = false;  // an output that is changed, or written in part: what it held before counts

  int64_t size() const {
    int64_t count = 1;
    for (int64_t s : shape) count *= s;
    return count;
  }
  int64_t bytes() const { return size() * dtype_bytes(dtype); }
  template <class T>
  T* as() const {
    if (sizeof(T) != static_cast<size_t>(dtype_bytes(dtype)))
      throw std::invalid_argument(name + " is " + dtype_name(dtype));
    return static_cast<T*>(data);
  }
};

struct Call {
  std::vector<Array> arrays;
  std::map<std::string, int64_t> integers;

  const Array* find(const std::string& name) const {
    for (const Array& a : arrays)
      if (a.name == name) return &a;
    return nullptr;
  }
  const Array& array(const std::string& name) const {
    if (const Array* a = find(name)) return *a;
    throw std::invalid_argument("missing array " + name);
  }
  const void* data_or_null(const std::string& name) const {
    const Array* a = find(name);
    return a ? a->data : nullptr;
  }
  int64_t integer(const std::string& name) const {
    const auto it = integers.find(name);
    if (it == integers.end()) throw std::invalid_argument("missing integer " + name);
    return it->second;
  }
  int64_t integer(const std::string& name, int64_t otherwise) const {
    const auto it = integers.find(name);
    return it == integers.end() ? otherwise : it->second;
  }
};

// Integers that a run gives back by name: bad_row (-1: none), the plan it used, sizes it computed.
using Outcome = std::map<std::string, int64_t>;

// A Call that owns its arrays.
struct Sample {
  Call call;
  std::vector<Fenced> memory;

  template <class T>
  T* add(const std::string& name, Dtype dtype, std::vector<int64_t> shape, bool output = false) {
    Array a{name, dtype, std::move(shape), nullptr, output};
    memory.emplace_back(a.bytes(), output ? 64 : dtype_bytes(dtype));
    a.data = memory.back().data();
    call.arrays.push_back(std::move(a));
    return static_cast<T*>(call.arrays.back().data);
  }
  template <class T>
  T* add_in_place(const std::string& name, Dtype dtype, std::vector<int64_t> shape) {
    T* const data = add<T>(name, dtype, std::move(shape));
    call.arrays.back().output = call.arrays.back().in_place = true;
    return data;
  }
};

// run(call, stream) with the call's arrays where CUDA kernels see them: on the emulated grid, whose schedule is drawn
// from the integer `seed` (0), or on the GPU. Throws std::runtime_error for what run returns or the device reports.
void on_device(const Call& call, const std::function<const char*(const Call&, void* stream)>& run);

using Random = std::mt19937_64;
inline int64_t below(Random& random, int64_t bound) {
  return static_cast<int64_t>(random() % static_cast<uint64_t>(bound));
}

struct Variant {
  std::string op, name;
  cpu::Isa isa;
  std::function<Outcome(const Call&)> run;
  std::function<Sample(Random&)> sample;  // a valid call of any shape, for fuzz.cpp
  bool cuda = false;                      // isa says nothing then
  std::function<bool(const Call&)> takes = nullptr;  // whether it answers such a call; null: every one
};
inline const char* isa_name(const Variant& v) { return v.cuda ? "cuda" : cpu::isa_name(v.isa); }

inline std::vector<Variant>& variants() {
  static std::vector<Variant> all;
  return all;
}
inline const Variant& variant(const std::string& name) {
  for (const Variant& v : variants())
    if (v.name == name) return v;
  throw std::invalid_argument("no kernel is named " + name);
}

}  // namespace sparsecore::native
