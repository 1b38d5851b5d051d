// SPDX-License-Identifier: Apache-2.0
// kv_decompress: bits and values of compressed tokens (core/kv.h) to dense rows [head_dim], bit for bit; 0 where nothing
// is stored. The arrays are untrusted, dense aliases none.
#pragma once
#include "core/kv.h"
#include "cpu/kernel_table.h"

namespace sparsecore::kv_decompress {

struct Args {
  int64_t head_dim, keep;
  const uint8_t* bitmask;  // [rows, 4 * words]
  const void* values;  // [rows, keep] of value
  void* dense;  // [rows, head_dim] of value
  Dtype value;  // f32, bf16, f16
};

struct Kernel {
  const char* name;
  cpu::Isa isa;
  // Rows [begin, end). Returns -1, or a row whose bits are not `keep` channels (dense is then part written).
  int64_t (*run)(const Args&, int64_t begin, int64_t end);
};

cpu::KernelTable<Kernel> kernels();

// On CUDA: the same for all rows on a stream (a cudaStream_t), whose device holds every array; bitmask is aligned to 4
// bytes, dense to 16. A row whose bits are not `keep` channels comes out NaN, and nothing outside the arrays is read.
// Reads nothing on the host, allocates nothing, may be captured. Null, or the error's text.
const char* launch(const Args&, int64_t rows, void* stream);

}  // namespace sparsecore::kv_decompress
