// SPDX-License-Identifier: Apache-2.0
// What adapters of N:M ops share.
#pragma once
#include "core/nm.h"
#include "linear_op.h"

namespace sparsecore::native {

inline const std::vector<Dtype>& nm_values() {
  static const std::vector<Dtype> all = {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::i8, Dtype::f8};
  return all;
}

// A kind by chance, as view.keep, group and index for k columns.
inline NmView random_kind(Random& random, int64_t k) {
  static constexpr int64_t kKinds[][2] = {{1, 2}, {2, 4}, {4, 8}, {6, 8}, {1, 4}, {2, 8}, {1, 8}, {1, 16}};
  NmView w{};
  w.k = k;
  const int64_t i = below(random, 10);
  w.keep = i < 8 ? kKinds[i][0] : below(random, k + 1);
  w.group = i < 8 ? kKinds[i][1] : k;
  w.index = i < 8 ? Dtype::i8 : nm_index(k);
  return w;
}

inline std::vector<int64_t> values_shape(const NmView& w, int64_t rows) {
  return {rows, w.packed() ? nm_words(w.k) * kNmColumns / w.group : 1, w.keep};
}
inline std::vector<int64_t> positions_shape(const NmView& w, int64_t rows) {
  return {rows, w.packed() ? w.row_bytes() : w.keep};
}

// Fills positions [rows, ...] with n of every m by chance, rising.
inline void fill_positions(Random& random, const NmView& w, int64_t rows, void* positions) {
  // Each of `of` columns in turn is taken with the chance that is left.
  const auto pick = [&](int64_t n, int64_t of, auto&& take) {
    for (int64_t c = 0, left = n; c < of && left > 0; ++c)
      if (below(random, of - c) < left) take(c), --left;
  };
  for (int64_t row = 0; row < rows; ++row) {
    if (!w.packed()) {
      int64_t at = row * w.keep;
      pick(w.keep, w.k, [&](int64_t c) {
        if (w.index == Dtype::i16) static_cast<int16_t*>(positions)[at++] = static_cast<int16_t>(c);
        else static_cast<int32_t*>(positions)[at++] = static_cast<int32_t>(c);
      });
      continue;
    }
    const int64_t code = nm_code(w.keep, w.group);
    uint8_t* out = static_cast<uint8_t*>(positions) + row * w.row_bytes();
    std::memset(out, 0, static_cast<size_t>(w.row_bytes()));
    for (int64_t g = 0; g < w.row_bytes() * 8 / code; ++g) {
      int64_t field = 0, at = 0;
      pick(w.keep, w.group, [&](int64_t c) {
        if (nm_is_mask(w.keep, w.group)) field |= int64_t{1} << c;
        else field |= c << at, at += nm_field(w.group);
      });
      out[g * code / 8] |= static_cast<uint8_t>(field << g * code % 8);
    }
  }
}

// The weight of a call: values [rows, G, n], positions, k and, with values of 8 bits, scales.
inline NmView nm_weight(const Call& call) {
  const Array &values = call.array("values"), &positions = call.array("positions");
  NmView w{};
  w.k = call.integer("k");
  if (values.shape.size() != 3 || positions.shape.size() != 2 || positions.shape[0] != values.shape[0])
    throw std::invalid_argument("values and positions do not fit together");
  w.n = values.shape[0];
  w.nnz = values.size();
  w.keep = values.shape[2];
  w.index = positions.dtype;
  w.group = w.packed() ? nm_group_size(values.shape[1], w.keep, w.k) : w.k;
  w.values = values.data;
  w.positions = positions.data;
  w.value = values.dtype;
  w.scales = static_cast<const float*>(call.data_or_null("scales"));
  const bool fits = w.packed() ? w.group != 0 && positions.shape[1] == w.row_bytes()
                               : w.index == nm_index(w.k) && values.shape[1] == 1 && positions.shape[1] == w.keep;
  if (!fits || (w.value == Dtype::i8 || w.value == Dtype::f8) != (w.scales != nullptr))
    throw std::invalid_argument("values, positions, scales and k do not fit together");
  return w;
}

// Arguments of nm_compress: w [rows, stride], mask [rows, stride] or absent; values, positions and, for 8 bits, scales
// are outputs.
template <class Args>
Args compress_args(const Call& call) {
  const Array &w = call.array("w"), &values = call.array("values"), &positions = call.array("positions");
  const Array* mask = call.find("mask");
  const Array* scales = call.find("scales");
  const int64_t rows = values.shape[0], k = call.integer("k");
  const bool scaled = values.dtype == Dtype::i8 || values.dtype == Dtype::f8, packed = positions.dtype == Dtype::i8;
  Args args{};
  args.k = k;
  args.w = w.data;
  args.stride = w.shape[1];
  if (mask) args.mask = mask->as<uint8_t>(), args.mask_stride = mask->shape[1];
  args.keep = values.shape[2];
  args.group = packed ? nm_group_size(values.shape[1], args.keep, k) : k;
  args.values = values.data;
  args.positions = positions.data;
  if (scaled) args.scales = scales->as<float>();
  args.from = w.dtype;
  args.to = values.dtype;
  args.index = positions.dtype;
  if (w.shape[0] != rows || w.shape[1] < k || (mask && (mask->shape[0] != rows || mask->shape[1] < k)) ||
      (scaled && scales->size() != rows) || positions.shape != positions_shape(args.view(), rows))
    throw std::invalid_argument("w, mask, values, positions, scales and k do not fit together");
  return args;
}

// Small numbers in any dtype of values.
inline void fill_values(Random& random, void* data, Dtype d, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float v = static_cast<float>(below(random, 9) - 4);
    if (d == Dtype::i8) static_cast<int8_t*>(data)[i] = static_cast<int8_t>(v);
    else if (d == Dtype::f8) static_cast<uint8_t*>(data)[i] = f32_to_f8(v / 4);
    else store_f32(data, d, i, v / 4);
  }
}

// Adds values, positions and, where needed, scales of a random weight.
inline void sample_nm(Random& random, Sample& s, int64_t n, int64_t k) {
  const NmView w = random_kind(random, k);
  const Dtype value = nm_values()[below(random, 5)];
  const std::vector<int64_t> shape = values_shape(w, n);
  fill_values(random, s.add<void>("values", value, shape), value, shape[0] * shape[1] * shape[2]);
  fill_positions(random, w, n, s.add<void>("positions", w.index, positions_shape(w, n)));
  if (value == Dtype::i8 || value == Dtype::f8)
    fill_values(random, s.add<void>("scales", Dtype::f32, {n}), Dtype::f32, n);
}

// The activation and, of y's shape, the residual of a call.
inline Linear nm_linear(const Call& call, int64_t n) {
  Linear d = linear(call, n);
  d.activation = static_cast<Activation>(call.integer("activation", 0));
  d.residual = call.data_or_null("residual");
  d.residual_stride = d.y_stride;
  if (d.residual && (call.array("residual").shape != call.array("y").shape || call.array("residual").dtype != d.dtype))
    throw std::invalid_argument("residual is not as y");
  return d;
}

}  // namespace sparsecore::native
