// SPDX-License-Identifier: Apache-2.0
#include <tuple>

#include "ops/nm_compress/nm_compress.h"
#include "torch/cuda.h"
#include "torch/nm_arguments.h"

namespace sparsecore::nm_compress {
namespace {

using namespace binding;

std::tuple<Tensor, Tensor, Tensor> nm_compress(const Tensor& w, int64_t n, int64_t m, ScalarType dtype,
                                               const std::optional<Tensor>& mask) {
  check_device(w, "w");
  check_same_device(w, "w", mask, "mask");
  const DeviceGuard guard(w.get_device_index());
  Args args{};
  const NmCompressed c = nm_compressed(args, w, n, m, dtype, mask);
  check_launch(launch(args, w.size(0), current_stream(w)), "nm_compress");
  return {c.values, c.positions, c.scales};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CUDA, m) { m.impl("nm_compress", TORCH_BOX(&nm_compress)); }

}  // namespace sparsecore::nm_compress
