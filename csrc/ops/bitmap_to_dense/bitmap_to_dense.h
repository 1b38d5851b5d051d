// SPDX-License-Identifier: Apache-2.0
// bitmap_to_dense: a Bitmap weight to dense [n, k] of values' dtype, bit for bit; float32, value * scale of
// its row rounded once, when scaled. 0 where nothing is stored. The arrays are untrusted, dense aliases none.
//
// fp32, 4096 x 4096, one 2.8 GHz Ice Lake core, CPU ms at 50 % and 90 % zeros: AVX-512 10, 9 (64 MiB to write);
// AVX2 11, 10; scalar 20, 12. torch's CSR to_dense 223, 48. bf16: 5, 5; 6, 7; 18, 9. int8 to fp32: 9, 8; 10, 10;
// 24, 13. No NEON variant: scalar runs there.
#pragma once
#include "core/bitmap.h"
#include "cpu/kernel_table.h"

namespace sparsecore::bitmap_to_dense {

struct Args {
  BitmapView weight;
  void* dense;  // [n, k], contiguous
};

struct Kernel {
  const char* name;
  cpu::Isa isa;
  // Writes rows [begin, end). Returns -1, or a row that breaks a Bitmap invariant (dense is then part written).
  int64_t (*run)(const Args&, int64_t begin, int64_t end);
};

cpu::KernelTable<Kernel> kernels();

// On CUDA: the same on a stream (a cudaStream_t), whose device holds every array; bitmask is aligned to 4 bytes. A
// row that breaks a Bitmap invariant comes out NaN, and nothing outside the arrays is read. Reads nothing on the
// host, allocates nothing, may be captured. Null, or the error's text.
const char* launch(const Args&, void* stream);

}  // namespace sparsecore::bitmap_to_dense
