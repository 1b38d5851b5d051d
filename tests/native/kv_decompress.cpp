// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_decompress/kv_decompress.h"

#include "conversion_op.h"
#include "kv_op.h"

namespace sparsecore::native {
namespace {

Outcome run(const kv_decompress::Kernel& kernel, const Call& call) {
  const auto [args, rows] = decompress_args<kv_decompress::Args>(call);
  return run_rows(call, rows, [&, &args = args](int64_t begin, int64_t end) { return kernel.run(args, begin, end); });
}

Sample sample(Random& random) {
  const int64_t rows = below(random, 40), d = random_head_dim(random), keep = below(random, d + 1);
  const Dtype value = random_value(random);
  Sample s;
  fill_bits(random, s.add<uint8_t>("bitmask", Dtype::i8, {rows, 4 * kv_words(d)}), rows, d, keep);
  fill_small(random, s.add<void>("values", value, {rows, keep}), value, rows * keep);
  s.add<void>("dense", value, {rows, d}, true);
  s.call.integers = {{"head_dim", d}, {"pieces", 1 + below(random, 4)}};
  return s;
}

const bool registered = register_conversion("kv_decompress", kv_decompress::kernels(), run, sample);

}  // namespace
}  // namespace sparsecore::native
