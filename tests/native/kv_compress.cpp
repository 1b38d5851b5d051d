// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_compress/kv_compress.h"

#include "conversion_op.h"
#include "kv_op.h"

namespace sparsecore::native {
namespace {

Outcome run(const kv_compress::Kernel& kernel, const Call& call) {
  const auto [args, rows] = compress_args<kv_compress::Args>(call);
  return run_rows(call, rows, [&, &args = args](int64_t begin, int64_t end) -> int64_t {
    kernel.run(args, begin, end);
    return -1;
  });
}

Sample sample(Random& random) {
  const int64_t rows = below(random, 40), d = random_head_dim(random), stride = d + below(random, 3);
  const Dtype value = random_value(random);
  Sample s;
  fill_small(random, s.add<void>("x", value, {rows, stride}), value, rows * stride);
  s.add<void>("bitmask", Dtype::i8, {rows, 4 * kv_words(d)}, true);
  s.add<void>("values", value, {rows, below(random, d + 1)}, true);
  const int64_t weights = below(random, 3);
  if (weights > 0) fill_small(random, s.add<float>("weight", Dtype::f32, {weights, d}), Dtype::f32, weights * d);
  s.call.integers = {{"head_dim", d}, {"pieces", 1 + below(random, 4)}, {"tokens", 1 + below(random, 9)}};
  return s;
}

const bool registered = register_conversion("kv_compress", kv_compress::kernels(), run, sample);

}  // namespace
}  // namespace sparsecore::native
