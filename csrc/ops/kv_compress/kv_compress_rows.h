// SPDX-License-Identifier: Apache-2.0
// kv_compress of a range of rows, compiled once per ISA.
#pragma once
#include "cpu/kv_compress_rows.h"
#include "ops/kv_compress/kv_compress.h"

namespace sparsecore::kv_compress {
namespace {

void run(const Args& a, int64_t begin, int64_t end) {
  for (int64_t row = begin, next; row < end; row = next) {  // rows that share weights
    next = a.weight && (row / a.tokens + 1) * a.tokens < end ? (row / a.tokens + 1) * a.tokens : end;
    kv_compress_rows({a.x, a.stride, a.head_dim, a.keep, a.bitmask, a.values, a.value, a.weight_of(row)}, row, next);
  }
}

}  // namespace
}  // namespace sparsecore::kv_compress
