// SPDX-License-Identifier: Apache-2.0
//   splits   of a sequence, at most (what shapes ask for)
#include "kv_attention_op.h"

namespace sparsecore::native {
namespace {

bool is_nan(const Array& a, int64_t i) {
  const float v = load_f32(a.data, a.dtype, i);
  return v != v;
}

// A bad row as the CPU's adapter has it, of a sequence or KV head whose rows are NaN: a task of it that is at fault.
int64_t bad_row(const Call& call) {
  kv_attention::Args a = attention_args(call);
  const KvView& c = a.cache;
  const Array& lse = call.array("lse");
  int64_t longest = 0;
  for (int64_t i = 0; i < c.batch; ++i) {
    if (kv_length_fits(c, i)) longest = std::max<int64_t>(longest, c.lengths[i]);
    else if (a.q_heads * a.q_tokens == 0 || is_nan(lse, i * a.q_heads * a.q_tokens)) return i;
  }
  a.splits = (a.listed(longest) + a.split_pages() - 1) / a.split_pages();
  std::vector<int64_t> last_row(static_cast<size_t>(c.columns));
  const int64_t listed = kv_attention::find_selected_fault(a, last_row.data());
  for (int64_t head = 0; head < c.batch * c.kv_heads && a.queries() > 0; ++head) {
    const int64_t row = a.row(head / c.kv_heads, head % c.kv_heads, 0);
    bool wrong = false;
    for (int64_t r = 0; r < a.queries(); ++r) {
      const int64_t here = a.row(head / c.kv_heads, head % c.kv_heads, r);
      if (is_nan(lse, here) != is_nan(lse, row)) throw std::logic_error("of a KV head some rows are NaN");
      for (int64_t i = 0; i < c.head_dim; ++i) wrong |= is_nan(call.array("out"), here * c.head_dim + i);
    }
    if (wrong != is_nan(lse, row)) throw std::logic_error("of out and lse one is NaN");
    if (!wrong) continue;
    if (listed >= 0) return listed;
    for (int64_t split = 0; split < a.splits; ++split)
      if (kv_attention::find_fault(a, head * a.splits + split).fault != KvFault::none) return head * a.splits + split;
    return head * a.splits;
  }
  return -1;
}

Outcome run(const Call& given) {
  Call call = given;
  kv_attention::Args shapes = attention_args(call);
  shapes.splits = given.integer("splits", kv_attention::device_splits(shapes));
  const int64_t partial_size = shapes.tasks() * shapes.queries() * shapes.stride();
  const Fenced partial(partial_size * 4, 64);
  call.arrays.push_back({"partial", Dtype::f32, {partial_size}, partial.data(), true});
  on_device(call, [&](const Call& there, void* stream) {
    kv_attention::Args a = attention_args(there);
    a.splits = shapes.splits;
    a.partial = there.array("partial").as<float>();
    return kv_attention::launch(a, stream);
  });
  return {{"bad_row", bad_row(call)}, {"intact", partial.intact()}, {"splits", shapes.splits}};
}

const bool registered = [] {
  variants().push_back({"kv_attention", "kv_attention_cuda", cpu::Isa::scalar, run, nullptr, true});
  return true;
}();

}  // namespace
}  // namespace sparsecore::native
