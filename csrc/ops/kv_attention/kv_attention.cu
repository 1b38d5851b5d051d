// SPDX-License-Identifier: Apache-2.0
// kv_attention on CUDA: a block of four warps owns a split of a sequence and KV head with up to 8 queries of its group,
// which share what is expanded; a second kernel adds the splits, a block a query, in order.
// Queries and values of one 16-bit dtype go to tensor cores (kv_attention_cuda_mma.h), others to multiply-adds.
//
// A token of 128 channels at 70 %, bfloat16: 188 bytes of K and V, 11 cycles of an H100's SM, 44 instructions. Counted
// in what nvcc made, a warp takes some 70 for it: to expand K and multiply 21, V 19, where lanes begin 13, copies 11,
// weights 6. So instructions bound it at 70 %, a little at 50 % (272 bytes, 64 instructions), memory at 0 (512, 120): at
// most 1.7 times as fast as dense pages read at full rate. A group of one query costs what a group of 8 does. Not yet
// measured on a device.
//
// sass kv_attention_mma_kernel: LDGSTS HMMA.16816.F32 MOVM LDS.U16 SHFL; no LDL STL
// sass kv_attention_kernel: LDG FFMA SHFL POPC MUFU.EX2; no LDL STL
// sass kv_attention_merge_kernel: LDG STG MUFU.EX2 SHFL; no LDL STL
#include "ops/kv_attention/kv_attention_cuda_mma.h"
#include "ops/kv_attention/kv_attention_cuda_plain.h"

namespace sparsecore::kv_attention {
namespace {

__global__ void __launch_bounds__(kThreads) kv_attention_kernel(Args a) {
  const Item item(a);
  if (!item.good || item.begin >= item.end) return;
  plain_split(a, item, dynamic_shared<float>());
}

template <class Mma, int Tiles>
__global__ void __launch_bounds__(kThreads, 3) kv_attention_mma_kernel(Args a) {
  const Item item(a);
  if (!item.good || item.begin >= item.end) return;
  char* const shared = dynamic_shared<char>();
  uint2* const q = reinterpret_cast<uint2*>(shared);
  const int64_t apart = stage_bytes(a.cache);
  load_query_fragments(a, item, q);
  block_sync();
  float* const lines = reinterpret_cast<float*>(shared);
  const bool good = mma_warp<Mma, Tiles>(a, item, q, shared + query_bytes(a) + 2 * warp_index() * apart, apart,
                                         lines + warp_index() * kQueries * a.stride());
  if (block_any(!good || named_twice(a, item))) return refuse(a, item);
  join_warps(a, item, lines);
}

// A query's splits, to out and lse.
__global__ void __launch_bounds__(kThreads) kv_attention_merge_kernel(Args a) {
  __shared__ float lines[kWarps][kMostWords * kLanes];
  __shared__ float wholes[kWarps];
  const int row = static_cast<int>(blockIdx.x), q_tokens = static_cast<int>(a.q_tokens), heads = row / q_tokens;
  const int q_heads = static_cast<int>(a.q_heads), sequence = heads / q_heads, head = heads % q_heads;
  const int group = static_cast<int>(a.group()), kv_head = head / group;
  const int number = row % q_tokens * group + head % group;
  const int d = static_cast<int>(a.cache.head_dim), lane = lane_index(), warp = warp_index();
  const Sequence s(a, sequence);
  const int splits = s.used_splits();
  const int64_t step = a.queries() * a.stride();
  const float* const part = a.partial + (sequence * a.cache.kv_heads + kv_head) * a.splits * step + number * a.stride();
  float m = minus_infinity();
  bool bad = !s.good;
  for (int i = lane; i < splits; i += kLanes) {
    const float here = part[i * step];
    m = here > m ? here : m;
    bad |= here != here;
  }
  bad = warp_any(bad);
#pragma unroll
  for (int bits = kLanes / 2; bits > 0; bits /= 2) {
    const float other = warp_exchange(m, bits);
    m = other > m ? other : m;
  }
  const float shift = m == minus_infinity() ? 0.0f : m;
  float sums[kMostWords] = {}, whole = 0.0f;
#pragma unroll 4
  for (int i = warp; i < splits; i += kWarps) {
    const float* const line = part + i * step;
    const float l = line[1];
    if (bad || l == 0.0f) continue;  // nothing seen
    const float weight = exp2f(line[0] - shift);
    whole += weight * l;
#pragma unroll
    for (int w = 0; w < kMostWords; ++w)
      if (w * kLanes + lane < d) sums[w] += weight * line[2 + w * kLanes + lane];
  }
#pragma unroll
  for (int w = 0; w < kMostWords; ++w) lines[warp][w * kLanes + lane] = sums[w];
  if (lane == 0) wholes[warp] = whole;
  block_sync();
  whole = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) whole += wholes[w];
  for (int i = static_cast<int>(threadIdx.x); i < d; i += kThreads) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += lines[w][i];
    store_float(a.out, a.query, static_cast<int64_t>(row) * d + i, bad ? nan() : whole == 0.0f ? 0.0f : sum / whole);
  }
  if (threadIdx.x == 0) a.lse[row] = bad ? nan() : whole == 0.0f ? minus_infinity() : (m + log2f(whole)) * kLn2;
}

}  // namespace

int64_t device_splits(const Args& a) {
  // Three blocks for each of an H100's SMs, twice.
  const int64_t blocks = a.cache.batch * a.cache.kv_heads * ((a.queries() + kPanel - 1) / kPanel), wanted = 132 * 3 * 2;
  const int64_t most =
      (a.listed(a.cache.columns * a.cache.page) * a.cache.page + kDeviceSplitTokens - 1) / kDeviceSplitTokens;
  const int64_t splits = blocks > 0 ? (wanted + blocks - 1) / blocks : 1;
  return most < 1 ? 1 : splits < most ? splits : most;
}

const char* launch(const Args& a, void* stream) {
  const int64_t panels = (a.queries() + kPanel - 1) / kPanel, blocks = a.tasks() * panels;
  const int64_t rows = a.cache.batch * a.q_heads * a.q_tokens;
  if (blocks > 0x7fffffff || rows > 0x7fffffff) return "q: more queries than a grid holds";
  const auto grid = [&](int64_t count, int64_t shared) {
    return Grid{dim3(static_cast<unsigned>(count)), dim3(kThreads), shared, stream};
  };
  const auto tensor_cores = [&]<class Mma>(Mma) {
    const Grid all = grid(blocks, mma_shared_bytes(a));
    return a.cache.head_dim <= 128 ? cuda::launch(kv_attention_mma_kernel<Mma, 8>, all, a)
                                   : cuda::launch(kv_attention_mma_kernel<Mma, 16>, all, a);
  };
  const char* const error = a.query != a.cache.value || a.query == Dtype::f32
                                ? cuda::launch(kv_attention_kernel, grid(blocks, plain_shared_bytes(a)), a)
                            : a.query == Dtype::bf16 ? tensor_cores(MmaBf16())
                                                     : tensor_cores(MmaF16());
  return error ? error : cuda::launch(kv_attention_merge_kernel, grid(rows, 0), a);
}

}  // namespace sparsecore::kv_attention
