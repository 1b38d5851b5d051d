// SPDX-License-Identifier: Apache-2.0
#include "ops/nm_compress/nm_compress.h"

#include "conversion_op.h"
#include "nm_op.h"

namespace sparsecore::native {
namespace {

Outcome run(const nm_compress::Kernel& kernel, const Call& call) {
  const auto args = compress_args<nm_compress::Args>(call);
  const int64_t rows = call.array("values").shape[0];
  return run_rows(call, rows, [&](int64_t begin, int64_t end) { return kernel.run(args, begin, end); });
}

Sample sample(Random& random) {
  const int64_t rows = row_or_column_count(random, 80), k = row_or_column_count(random, 300),
                stride = k + below(random, 3);
  NmView kind = random_kind(random, k);
  const Dtype from = nm_values()[below(random, 3)], to = nm_values()[below(random, 5)];
  Sample s;
  void* w = s.add<void>("w", from, {rows, stride});
  for (int64_t i = 0; i < rows * stride; ++i)  // few different magnitudes, so that ties are met
    store_f32(w, from, i, static_cast<float>(below(random, 19) - 9) / 16.0f);
  if (random() & 1) {  // what n of m columns chosen by chance select, less some
    auto* mask = s.add<uint8_t>("mask", Dtype::i8, {rows, stride});
    std::memset(mask, 0, static_cast<size_t>(rows * stride));
    std::vector<uint8_t> positions(
        static_cast<size_t>(rows * (kind.packed() ? kind.row_bytes() : kind.keep * dtype_bytes(kind.index)) + 8));
    fill_positions(random, kind, rows, positions.data());
    kind.positions = positions.data();
    for (int64_t row = 0; row < rows; ++row)
      nm_row(kind, row, [&](int64_t column, int64_t) { mask[row * stride + column] = below(random, 8) != 0; });
  }
  s.add<void>("values", to, values_shape(kind, rows), true);
  s.add<void>("positions", kind.index, positions_shape(kind, rows), true);
  s.add<void>("scales", Dtype::f32, {to == Dtype::i8 || to == Dtype::f8 ? rows : 0}, true);
  s.call.integers = {{"k", k}, {"pieces", 1 + below(random, 4)}};
  return s;
}

const bool registered = register_conversion("nm_compress", nm_compress::kernels(), run, sample);

}  // namespace
}  // namespace sparsecore::native
