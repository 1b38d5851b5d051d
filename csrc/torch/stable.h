// SPDX-License-Identifier: Apache-2.0
// The stable LibTorch headers that bindings use, and nothing else of torch.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <sstream>
#include <stdexcept>

// Headers before torch 2.12 have it by another name.
#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

// Throws the message alone: STD_TORCH_CHECK puts the path of the source file in front of it.
#define SPARSECORE_REQUIRE(condition, ...)                               \
  do {                                                                   \
    if (!(condition)) ::sparsecore::binding::throw_message(__VA_ARGS__); \
  } while (0)

namespace sparsecore::binding {

template <class... Parts>
[[noreturn]] void throw_message(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

}  // namespace sparsecore::binding
