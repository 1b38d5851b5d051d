// SPDX-License-Identifier: Apache-2.0
// Kernel variants over NumPy, in this process and in place: for benchmarks, which want no pipe.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "harness.h"

namespace nb = nanobind;
using namespace sparsecore::native;

namespace {

// (name, dtype, shape, bytes, output); bytes: uint8 [size], the array's own memory
using Described = std::tuple<std::string, std::string, std::vector<int64_t>,
                             nb::ndarray<nb::ro, uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>, bool>;

std::vector<std::tuple<std::string, std::string, std::string, std::string>> list() {
  std::vector<std::tuple<std::string, std::string, std::string, std::string>> all;
  for (const Variant& v : variants()) {
    const char* missing = sparsecore::cpu::isa_missing(v.isa);
    all.emplace_back(v.op, v.name, isa_name(v), missing ? missing : "-");
  }
  return all;
}

Outcome run(const std::string& name, const std::map<std::string, int64_t>& integers,
            const std::vector<Described>& arrays) {
  Call call;
  call.integers = integers;
  for (const auto& [key, dtype, shape, bytes, output] : arrays) {
    Array a{key, dtype_from_name(dtype), shape, const_cast<uint8_t*>(bytes.data()), output};
    if (a.bytes() != static_cast<int64_t>(bytes.size())) throw std::invalid_argument(key + ": shape and bytes differ");
    call.arrays.push_back(std::move(a));
  }
  nb::gil_scoped_release release;
  return variant(name).run(call);
}

}  // namespace

NB_MODULE(sparsecore_native, m) {
  m.def("list", &list);
  m.def("run", &run);
}
