// SPDX-License-Identifier: Apache-2.0
// kv_append of one head's K or V, compiled once per ISA. Columns in order: one's dense page may be that of the column
// which is compressed as it begins, also of one that this call filled.
#pragma once
#include "cpu/kv_compress_rows.h"
#include "ops/kv_append/kv_append.h"

namespace sparsecore::kv_append {
namespace {

void run(const Args& a, int64_t task) {
  const Half& half = task % 2 == 0 ? a.k : a.v;
  const int64_t head = task / 2 % a.kv_heads, sequence = task / 2 / a.kv_heads, page = a.page;
  const int64_t element = dtype_bytes(a.value), row = a.head_dim * element, length = a.lengths[sequence];
  const auto first = [&](int64_t number) { return (number * a.kv_heads + head) * page; };  // token of a page
  char* const dense = static_cast<char*>(half.dense);
  const char* const x =
      static_cast<const char*>(half.x) + (sequence * half.strides[0] + head * half.strides[1]) * element;
  const Columns columns = columns_of(a, sequence);
  for (int64_t column = columns.begin; column < columns.end; ++column) {
    const int64_t old = column < columns.fresh ? -1 : a.leaving(sequence, column);
    if (old >= 0) {
      const int64_t to = first(a.targets[sequence * a.columns + old]);
      kv_compress_rows(
          {dense + first(-2 - a.entry(sequence, old)) * row, a.head_dim, a.head_dim, half.keep,
           half.bitmask + to * 4 * kv_words(a.head_dim), static_cast<char*>(half.values) + to * half.keep * element,
           a.value, half.weight_of(sequence, head, a.head_dim)},
          0, page);
    }
    const int64_t at = column * page, begin = at > length ? at : length;
    const int64_t end = at + page < length + a.tokens ? at + page : length + a.tokens;
    char* const to = dense + (first(-2 - a.entry(sequence, column)) - at) * row;
    for (int64_t p = begin; p < end; ++p)
      std::memcpy(to + p * row, x + (p - length) * half.strides[2] * element, static_cast<size_t>(row));
  }
}

}  // namespace
}  // namespace sparsecore::kv_append
