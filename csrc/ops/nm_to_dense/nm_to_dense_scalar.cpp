// SPDX-License-Identifier: Apache-2.0
// nm_to_dense in plain loops: a row is cleared, then written at its positions.
#include "ops/nm_to_dense/nm_to_dense.h"

namespace sparsecore::nm_to_dense {
namespace {

template <class Value, class Out, class Convert>
int64_t spread(const Args& a, int64_t begin, int64_t end, const Convert& convert) {
  const NmView& w = a.weight;
  for (int64_t row = begin; row < end; ++row) {
    if (nm_check_row(w, row).fault != NmFault::none) return row;
    const Value* values = static_cast<const Value*>(w.values) + row * w.row_values();
    Out* out = static_cast<Out*>(a.dense) + row * w.k;
    if (w.k > 0) std::memset(out, 0, static_cast<size_t>(w.k) * sizeof(Out));
    nm_row(w, row, [&](int64_t column, int64_t p) { out[column] = convert(values[p], row); });
  }
  return -1;
}

int64_t run(const Args& a, int64_t begin, int64_t end) {
  const auto same = [](auto value, int64_t) { return value; };
  const float* scales = a.weight.scales;
  switch (a.weight.value) {
    case Dtype::bf16:
    case Dtype::f16: return spread<uint16_t, uint16_t>(a, begin, end, same);
    case Dtype::i8:
      return spread<int8_t, float>(a, begin, end,
                                   [=](int8_t q, int64_t row) { return static_cast<float>(q) * scales[row]; });
    case Dtype::f8:
      return spread<uint8_t, float>(a, begin, end, [=](uint8_t q, int64_t row) { return f8_to_f32(q) * scales[row]; });
    default: return spread<float, float>(a, begin, end, same);
  }
}

}  // namespace

extern const Kernel kernel_scalar;
const Kernel kernel_scalar = {"nm_to_dense_scalar", cpu::Isa::scalar, run};

}  // namespace sparsecore::nm_to_dense
