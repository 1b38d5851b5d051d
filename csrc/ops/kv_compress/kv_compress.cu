// SPDX-License-Identifier: Apache-2.0
// kv_compress on CUDA: a warp owns a row, which cuda/kv_compress.h compresses in registers.
//
// A row of 128 in bfloat16 is 256 bytes read and some 94 written, 20 cycles of an H100's SM; it takes about 130
// instructions, 33 cycles of its four schedulers: K and V of 32768 tokens of 8 heads in 0.08 ms. Not yet measured on a
// device.
//
// sass kv_compress_kernel: LDG STG REDUX VOTE POPC; no LDL STL
#include "cuda/kv_compress.h"
#include "ops/kv_compress/kv_compress.h"

namespace sparsecore::kv_compress {
namespace {

using namespace cuda;

constexpr int kWarps = 4;

// Number: the integer type of a value's bits.
template <class Number>
__global__ void __launch_bounds__(kWarps* kLanes) kv_compress_kernel(Args a, int64_t rows) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (row >= rows) return;  // the whole warp
  kv_compress_row(static_cast<const Number*>(a.x) + row * a.stride, a.value, a.weight_of(row),
                  static_cast<int>(a.head_dim), static_cast<int>(a.keep),
                  reinterpret_cast<uint32_t*>(a.bitmask) + row * kv_words(a.head_dim),
                  static_cast<Number*>(a.values) + row * a.keep);
}

}  // namespace

const char* launch(const Args& a, int64_t rows, void* stream) {
  const int64_t blocks = (rows + kWarps - 1) / kWarps;
  if (blocks > 0x7fffffff) return "x: more rows than a grid holds";
  const Grid grid = {dim3(static_cast<unsigned>(blocks)), dim3(kWarps * kLanes), 0, stream};
  const auto kernel = a.value == Dtype::f32 ? kv_compress_kernel<uint32_t> : kv_compress_kernel<uint16_t>;
  return cuda::launch(kernel, grid, a, rows);
}

}  // namespace sparsecore::kv_compress
