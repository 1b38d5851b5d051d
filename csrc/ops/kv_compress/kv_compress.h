// SPDX-License-Identifier: Apache-2.0
// kv_compress: rows [head_dim] of K or V, a token of a head each, to the bits and values of a compressed page
// (core/kv.h): the `keep` channels of largest magnitude (per-token pruning of Mustafar, Joo et al. 2025), compared as
// numbers, NaN above all and alike; of equals the lowest channel. With weights it is the magnitude of x * weight,
// rounded to float32, that counts (output-aware pruning, there: weight is a sum of |q|). Values are kept bit for bit.
// Nothing aliases x.
//
// One 2.8 GHz Ice Lake core, ns a row of head_dim 64 and 128: bf16 AVX-512 and AVX2 295, 400, scalar 323, 440; fp32 420,
// 610, 625, 900; with weights bf16 485, 620, scalar 510, 920, and fp32 as without. The K and V of a token with 8 heads of
// 128 in bf16: 6.5 us.
#pragma once
#include "core/kv.h"
#include "cpu/kernel_table.h"

namespace sparsecore::kv_compress {

struct Args {
  int64_t head_dim, keep;
  const void* x;  // [rows, head_dim] of value, row i at x + i * stride elements
  int64_t stride;
  uint8_t* bitmask;  // [rows, 4 * words]
  void* values;  // [rows, keep] of value
  Dtype value;  // f32, bf16, f16
  const float* weight;  // [weights, head_dim], row i has number i / tokens % weights; or null
  int64_t weights, tokens;

  SPARSECORE_INLINE const float* weight_of(int64_t row) const {
    return weight ? weight + row / tokens % weights * head_dim : nullptr;
  }
};

struct Kernel {
  const char* name;
  cpu::Isa isa;
  void (*run)(const Args&, int64_t begin, int64_t end);  // rows
};

cpu::KernelTable<Kernel> kernels();

// On CUDA: the same for all rows on a stream (a cudaStream_t), whose device holds every array; bitmask is aligned to 4
// bytes. Reads nothing on the host, allocates nothing, may be captured. Null, or the error's text.
const char* launch(const Args&, int64_t rows, void* stream);

}  // namespace sparsecore::kv_compress
