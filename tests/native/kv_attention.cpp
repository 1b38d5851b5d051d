// SPDX-License-Identifier: Apache-2.0
#include "kv_attention_op.h"

#include "conversion_op.h"

namespace sparsecore::native {
namespace {

// A bad row is a task that is refused, a sequence whose length does not fit, or the number of an entry of selected.
Outcome run(const kv_attention::Kernel& kernel, const Call& call) {
  kv_attention::Args a = attention_args(call);
  const KvView& c = a.cache;
  int64_t longest = 0;
  for (int64_t i = 0; i < c.batch; ++i) {
    if (!kv_length_fits(c, i)) return {{"bad_row", i}, {"intact", 1}};
    longest = std::max<int64_t>(longest, c.lengths[i]);
  }
  std::vector<int64_t> last_row(static_cast<size_t>(c.columns));
  const int64_t wrong = kv_attention::find_selected_fault(a, last_row.data());
  if (wrong >= 0) return {{"bad_row", wrong}, {"intact", 1}};
  a.splits = (a.listed(longest) + a.split_pages() - 1) / a.split_pages();
  const Fenced partial(a.tasks() * a.queries() * a.stride() * 4, 64), scratch(kernel.scratch_bytes(a), 64);
  a.partial = static_cast<float*>(partial.data());
  const int64_t only = call.integer("row", -1);
  int64_t bad = -1;
  for (int64_t task = a.tasks(); task-- > 0;)
    if (only < 0 || only == task) {
      const bool good = kernel.run(a, task, scratch.data());
      const bool sound = kv_attention::find_fault(a, task).fault == KvFault::none;
      if (a.drop < 0.0f ? !good && sound : good != sound)  // V that is dropped is not looked at
        throw std::logic_error("run and find_fault disagree");
      if (!good) bad = task;
    }
  if (bad < 0 && only < 0)
    for (int64_t head = 0; head < c.batch * c.kv_heads; ++head) kernel.merge(a, head);
  return {{"bad_row", bad}, {"intact", partial.intact() && scratch.intact()}};
}

Sample sample(Random& random) {
  const int64_t batch = below(random, 4), heads = 1 + below(random, 2), page = 16 * (1 + below(random, 5));
  const int64_t d = random_head_dim(random), columns = 1 + below(random, (random() % 8 == 0 ? 700 : 150) / page + 1),
                group = 1 + below(random, 9);
  const int64_t pages = 1 + below(random, 5), dense = 1 + below(random, 3), q_tokens = 1 + below(random, 3);
  const Dtype value = random_value(random), query = random_value(random);
  Sample s;
  const int64_t q_size = batch * heads * group * q_tokens * d;
  fill_small(random, s.add<void>("q", query, {batch, heads * group, q_tokens, d}), query, q_size);
  for (const std::string half : {"k", "v"}) {
    const int64_t keep = below(random, d + 1), rows = pages * heads * page;
    fill_bits(random, s.add<uint8_t>(half + "_bitmask", Dtype::i8, {pages, heads, page, 4 * kv_words(d)}), rows, d,
              keep);
    fill_small(random, s.add<void>(half + "_values", value, {pages, heads, page, keep}), value, rows * keep);
    fill_small(random, s.add<void>(half + "_dense", value, {dense, heads, page, d}), value, dense * heads * page * d);
  }
  auto* table = s.add<int32_t>("page_table", Dtype::i32, {batch, columns});
  for (int64_t i = 0; i < batch * columns; ++i)
    table[i] = static_cast<int32_t>(random() % 3 == 0 ? -2 - below(random, dense) : below(random, pages));
  auto* lengths = s.add<int32_t>("lengths", Dtype::i32, {batch});
  for (int64_t i = 0; i < batch; ++i) lengths[i] = static_cast<int32_t>(below(random, columns * page + 1));
  const int64_t sizes[] = {random() % 2 ? batch : 1, random() % 2 ? heads * group : 1, random() % 2 ? q_tokens : 1};
  if (random() % 4 == 0) {
    const int64_t count = sizes[0] * sizes[1] * sizes[2] * columns * page;
    fill_small(random, s.add<float>("bias", Dtype::f32, {sizes[0], sizes[1], sizes[2], columns * page}), Dtype::f32,
               count);
  }
  if (random() % 4 == 0)
    fill_small(random, s.add<float>("slopes", Dtype::f32, {heads * group}), Dtype::f32, heads * group);
  const int64_t count = below(random, columns + 1);
  if (random() % 4 == 0) {
    auto* selected = s.add<int32_t>("selected", Dtype::i32, {batch, heads, count});
    for (int64_t i = 0; i < batch * heads; ++i) {
      int64_t column = below(random, columns);  // each once: from here on, some left out
      for (int64_t j = 0; j < count; ++j, column = (column + 1) % columns)
        selected[i * count + j] = static_cast<int32_t>(random() % 4 == 0 ? -1 : column);
    }
  }
  s.add<void>("out", query, {batch, heads * group, q_tokens, d}, true);
  s.add<float>("lse", Dtype::f32, {batch, heads * group, q_tokens}, true);
  // Kernels drop blocks of different sizes: of weights that no output shows.
  const bool drops = random() % 4 == 0;
  s.call.integers = {{"scale", f32_to_bits(drops ? 8.0f : 0.25f)},
                     {"softcap", f32_to_bits(random() % 4 == 0 ? 3.0f : 0.0f)},
                     {"drop", f32_to_bits(drops ? -16.0f : 0.0f)},
                     {"window", random() % 4 == 0 ? 1 + below(random, 100) : 0}};
  return s;
}

const bool registered = register_conversion("kv_attention", kv_attention::kernels(), run, sample);

}  // namespace
}  // namespace sparsecore::native
