// SPDX-License-Identifier: Apache-2.0
#include "kv_append_op.h"

#include "conversion_op.h"

namespace sparsecore::native {
namespace {

// A bad row is a sequence with a fault: then nothing is changed.
Outcome run(const kv_append::Kernel& kernel, const Call& call) {
  const kv_append::Args a = append_args(call);
  const int64_t only = call.integer("row", -1);
  int64_t bad = -1;
  for (int64_t s = 0; s < a.batch; ++s)
    if ((only < 0 || only == s) && kv_append::find_fault(a, s).fault != kv_append::Fault::none) bad = s;
  if (bad >= 0 || only >= 0) return {{"bad_row", bad}, {"intact", 1}};
  for (int64_t task = a.tasks(); task-- > 0;) kernel.run(a, task);
  for (int64_t s = 0; s < a.batch; ++s) kv_append::advance(a, s);
  return {{"bad_row", -1}, {"intact", 1}};
}

Sample sample(Random& random) {
  const int64_t batch = below(random, 3), heads = 1 + below(random, 2), page = 16 * (1 + below(random, 2));
  const int64_t d = random_head_dim(random), columns = 1 + below(random, 5), recent = 1 + below(random, 3);
  const int64_t tokens = below(random, random() % 2 == 0 ? 3 : columns * page + 1), ring = recent + 1;
  const int64_t pages = batch * columns + 1, dense = batch * ring + 1, gap = below(random, 3);
  const Dtype value = random_value(random);
  Sample s;
  for (const std::string half : {"k", "v"}) {
    const int64_t keep = below(random, d + 1), rows = pages * heads * page;
    fill_small(random, s.add<void>(half, value, {batch, heads, tokens, d + gap}), value,
               batch * heads * tokens * (d + gap));
    fill_bits(random, s.add_in_place<uint8_t>(half + "_bitmask", Dtype::i8, {pages, heads, page, 4 * kv_words(d)}),
              rows, d, keep);
    fill_small(random, s.add_in_place<void>(half + "_values", value, {pages, heads, page, keep}), value, rows * keep);
    if (random() % 2 == 0)
      fill_small(random, s.add<float>(half + "_weight", Dtype::f32, {batch, heads, d}), Dtype::f32, batch * heads * d);
    fill_small(random, s.add_in_place<void>(half + "_dense", value, {dense, heads, page, d}), value,
               dense * heads * page * d);
  }
  auto* table = s.add_in_place<int32_t>("page_table", Dtype::i32, {batch, columns});
  auto* lengths = s.add_in_place<int32_t>("lengths", Dtype::i32, {batch});
  auto* targets = s.add<int32_t>("targets", Dtype::i32, {batch, columns});
  for (int64_t i = 0; i < batch; ++i) {
    lengths[i] = static_cast<int32_t>(below(random, columns * page - tokens + 1));
    for (int64_t j = 0, at = i * columns; j < columns; ++j, ++at) {
      // Column 0 stays dense, in a page of its own; the others in a ring.
      table[at] = static_cast<int32_t>(-2 - i * ring - (j == 0 ? 0 : 1 + (j - 1) % recent));
      targets[at] = static_cast<int32_t>(j == 0 ? -1 : at);
      if (j > 0 && j < lengths[i] / page && random() % 4 == 0) table[at] = targets[at];
    }
  }
  s.call.integers = {{"recent", recent}};
  return s;
}

const bool registered = register_conversion("kv_append", kv_append::kernels(), run, sample);

}  // namespace
}  // namespace sparsecore::native
