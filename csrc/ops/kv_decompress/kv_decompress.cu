// SPDX-License-Identifier: Apache-2.0
// kv_decompress on CUDA: a thread makes 8 channels, those of a byte of the bitmask, and stores them in one or two
// pieces of 16 bytes. It counts the row's bits before its byte, which say where the byte's values begin, and all of
// them, which tell a broken row; its neighbours read the same words.
//
// Bytes of a row of 128, bfloat16 at 70 %: 256 written, 94 read, 20 cycles of an H100's SM; instructions: some 60 a
// thread, 16 threads a row, 8 cycles of its four schedulers. Not yet measured on a device.
//
// sass kv_decompress_kernel: LDG STG.128 POPC; no LDL STL
#include "cuda/copy.h"
#include "ops/kv_decompress/kv_decompress.h"

namespace sparsecore::kv_decompress {
namespace {

using namespace cuda;

constexpr int kThreads = 128;

// Number: an integer as large as a value.
template <class Number>
__global__ void __launch_bounds__(kThreads) kv_decompress_kernel(Args a, int64_t rows, Number nan) {
  const int bytes = static_cast<int>(a.head_dim) / 8, words = (bytes + 3) / 4;
  const int thread = static_cast<int>(threadIdx.x), per_block = kThreads / bytes;  // rows; some threads may be left
  const int64_t row = static_cast<int64_t>(blockIdx.x) * per_block + thread / bytes;
  if (thread >= per_block * bytes || row >= rows) return;
  const int byte = thread % bytes;
  const uint32_t* const bits = reinterpret_cast<const uint32_t*>(a.bitmask) + row * words;
  unsigned own = 0, padding = 0;
  int before = 0, population = 0;
#pragma unroll
  for (int w = 0; w < 8; ++w) {
    if (w >= words) break;
    const unsigned word = bits[w];
    population += __popc(word);
    const unsigned below = 8 * byte >= 32 * (w + 1) ? ~0u : 8 * byte <= 32 * w ? 0u : (1u << 8 * byte % 32) - 1;
    before += __popc(word & below);
    if (byte / 4 == w) own = word >> 8 * byte % 32 & 255;
    if (w == words - 1) padding = word & kv_padding(a.head_dim);
  }
  const bool good = population == a.keep && padding == 0;
  const Number* const from = static_cast<const Number*>(a.values) + row * a.keep + before;
  Number* const to = static_cast<Number*>(a.dense) + row * a.head_dim + byte * 8;
  constexpr int W = 16 / sizeof(Number);
#pragma unroll
  for (int c = 0; c < 8; c += W) {
    Pack<Number, W> out;
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const bool stored = good && (own >> (c + j) & 1) != 0;
      out.at[j] = stored ? from[__popc(own & ((1u << (c + j)) - 1))] : good ? Number{0} : nan;
    }
    store_pack(to + c, out);
  }
}

}  // namespace

const char* launch(const Args& a, int64_t rows, void* stream) {
  const int64_t per_block = kThreads / (a.head_dim / 8), blocks = (rows + per_block - 1) / per_block;
  if (blocks > 0x7fffffff) return "values: more rows than a grid holds";
  const Grid grid = {dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream};
  if (a.value == Dtype::f32) return cuda::launch(kv_decompress_kernel<uint32_t>, grid, a, rows, 0x7fffffffu);
  return cuda::launch(kv_decompress_kernel<uint16_t>, grid, a, rows, uint16_t{0x7fff});
}

}  // namespace sparsecore::kv_decompress
