// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_append/kv_append.h"

#include "conversion_op.h"
#include "kv_op.h"

namespace sparsecore::native {
namespace {

kv_append::Half half(const Call& call, const std::string& name) {
  const Array &x = call.array(name), &values = call.array(name + "_values");
  const std::vector<int64_t>& n = x.shape;
  return {x.data,      {n[1] * n[2] * n[3], n[2] * n[3], n[3]}, call.array(name + "_bitmask").as<uint8_t>(),
          values.data, call.array(name + "_dense").data,        values.shape[3]};
}

// Arrays as the op has them, all but k, v and targets changed in place; k and v are contiguous, their channels past
// head_dim are gaps. A bad row is a sequence with a fault: then nothing is changed.
Outcome run(const kv_append::Kernel& kernel, const Call& call) {
  const Array &x = call.array("k"), &values = call.array("k_values"), &dense = call.array("k_dense");
  kv_append::Args a{};
  a.batch = x.shape[0];
  a.kv_heads = x.shape[1];
  a.tokens = x.shape[2];
  a.head_dim = dense.shape[3];
  a.page = values.shape[2];
  a.columns = call.array("page_table").shape[1];
  a.pages = values.shape[0];
  a.dense_pages = dense.shape[0];
  a.recent = call.integer("recent");
  a.k = half(call, "k");
  a.v = half(call, "v");
  a.page_table = call.array("page_table").as<int32_t>();
  a.lengths = call.array("lengths").as<int32_t>();
  a.targets = call.array("targets").as<int32_t>();
  a.value = values.dtype;
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
