// SPDX-License-Identifier: Apache-2.0
// Kernels that test the emulator: of each fault one, and of tensor-core products all.
#pragma once
#include <cstdint>

namespace self_tests {

// Kernels over `in` [64] and `out` [64], int32, in blocks of 64 threads. In faults.cu.
struct Case {
  const char* name;
  const char* (*launch)(const int* in, int* out, void* stream);
};
extern const Case cases[];
extern const int case_count;

// c [count, 16, 8] += a [count, 16, K] · b [count, K, 8], a warp a product. Dense: a as it is. Sparse: a holds
// the kept half, [count, 16, K / 2], and kept [count, 16, K / 4] the metadata, one 4-bit entry a byte.
struct Products {
  int input;     // 0: bf16, 1: f16, 2: int8 (c: int32)
  int selector;  // -1: dense, else sparse
  int loads;     // 0: element by element; 16-bit sparse alone: by ldmatrix, 1: of b's columns, 2: of b's rows
  int count;
  const void *a, *b;
  const uint8_t* kept;
  void* c;
};
const char* launch(const Products&, void* stream);  // in fragments.cu

}  // namespace self_tests
