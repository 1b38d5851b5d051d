// SPDX-License-Identifier: Apache-2.0
// Pages that one call of kv_append would change for two sequences or columns, found on the host.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "ops/kv_append/kv_append.h"

namespace sparsecore::kv_append {

struct Shared {
  enum Kind { none, columns, dense, target } kind = none;
  int64_t page = 0, first = 0, second = 0;  // columns of `sequence`, or sequences
  int64_t sequence = 0;
};

// A column before `column` that has its dense page and tokens there still, or -1.
inline int64_t column_that_loses(const Args& a, int64_t sequence, int64_t column) {
  for (int64_t c = 0; c < column; ++c) {
    const bool left = c + a.recent <= column && a.targets[sequence * a.columns + c] >= 0;
    if (a.entry(sequence, c) == a.entry(sequence, column) && !left) return c;
  }
  return -1;
}

// Of sequences without a fault. Counts the pages that are compressed.
inline Shared find_shared(const Args& a, int64_t& compressed) {
  std::vector<std::pair<int64_t, int64_t>> changed;  // (entry of a page that is written, sequence)
  for (int64_t s = 0; s < a.batch; ++s) {
    const Columns columns = columns_of(a, s);
    for (int64_t column = columns.begin; column < columns.end; ++column) {
      changed.emplace_back(a.entry(s, column), s);
      if (column < columns.fresh) continue;
      if (const int64_t c = column_that_loses(a, s, column); c >= 0)
        return {Shared::columns, -2 - a.entry(s, column), c, column, s};
      const int64_t old = a.leaving(s, column);
      if (old < 0) continue;
      ++compressed;
      changed.emplace_back(a.entry(s, old), s);
      changed.emplace_back(a.targets[s * a.columns + old], s);
    }
  }
  std::sort(changed.begin(), changed.end());
  for (size_t i = 1; i < changed.size(); ++i) {
    const auto& [entry, s] = changed[i - 1];
    const auto& [same, other] = changed[i];
    if (entry != same || (entry < 0 && s == other)) continue;  // a ring's page may change twice
    return {entry < 0 ? Shared::dense : Shared::target, entry < 0 ? -2 - entry : entry, s, other};
  }
  return {};
}

}  // namespace sparsecore::kv_append
