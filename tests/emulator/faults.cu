// SPDX-License-Identifier: Apache-2.0
// Small kernels that are right, and others each wrong in one way that hardware may let pass.
//
// sass async_copies: LDGSTS.E.BYPASS.128 LDGDEPBAR DEPBAR
// sass collectives: ATOMS ATOMS.CAS MATCH.ANY VOTE SHFL
#include "cuda/atomic.h"
#include "cuda/block.h"
#include "cuda/copy.h"
#include "self_tests.h"

namespace self_tests {
namespace {

using namespace sparsecore::cuda;

constexpr int kThreads = 64;

// Right: each thread reads what its mirror wrote.
__global__ void mirror(const int* in, int* out) {
  __shared__ int tile[kThreads];
  const int t = static_cast<int>(threadIdx.x);
  tile[t] = in[t];
  __syncthreads();
  out[t] = tile[kThreads - 1 - t];
}

__global__ void missing_barrier(const int* in, int* out) {
  __shared__ int tile[kThreads];
  const int t = static_cast<int>(threadIdx.x);
  tile[t] = in[t];
  out[t] = tile[kThreads - 1 - t];
}

// The first pass reads while others write the second.
__global__ void missing_second_barrier(const int* in, int* out) {
  __shared__ int tile[kThreads];
  const int t = static_cast<int>(threadIdx.x);
  for (int pass = 0; pass < 2; ++pass) {
    tile[t] = in[t] + pass;
    __syncthreads();
    out[t] = tile[kThreads - 1 - t];
  }
}

__global__ void missing_warp_barrier(const int* in, int* out) {
  __shared__ int tile[kThreads];
  const int t = static_cast<int>(threadIdx.x);
  tile[t] = in[t];
  warp_any(true);  // meets the lanes, orders no memory
  out[t] = tile[t ^ 1];
}

// Right.
__global__ void warp_barrier(const int* in, int* out) {
  __shared__ int tile[kThreads];
  const int t = static_cast<int>(threadIdx.x);
  for (int pass = 0; pass < 3; ++pass) {
    tile[t] = in[t] + pass;
    warp_sync();
    out[t] = tile[t ^ 1] + tile[t ^ 2];
    warp_sync();
  }
}

__global__ void divergent_barrier(const int* in, int* out) {
  const int t = static_cast<int>(threadIdx.x);
  if (t < 40) __syncthreads();
  out[t] = in[t];
}

__global__ void two_barriers(const int* in, int* out) {
  const int t = static_cast<int>(threadIdx.x);
  if (in[t] % 2 == 0) __syncthreads();
  else __syncthreads();
  out[t] = in[t];
}

__global__ void lane_left(const int* in, int* out) {
  const int t = static_cast<int>(threadIdx.x);
  if (t == 37) return;
  out[t] = warp_shuffle(in[t], 0);
}

__global__ void masks_differ(const int* in, int* out) {
  const int t = static_cast<int>(threadIdx.x);
  out[t] = __shfl_sync(t % 32 == 3 ? 0x0fu : 0xffffffffu, in[t], 0);
}

__global__ void shuffle_from_outside(const int* in, int* out) {
  const int t = static_cast<int>(threadIdx.x);
  out[t] = t % 32 < 4 ? __shfl_sync(0x0fu, in[t], 9) : 0;
}

__global__ void read_past_end(const int* in, int* out) { out[threadIdx.x] = in[threadIdx.x + 1]; }
__global__ void write_before_begin(const int* in, int* out) {
  out[static_cast<int>(threadIdx.x) - 1] = in[threadIdx.x];
}
__global__ void write_input(const int* in, int* out) { const_cast<int*>(in)[threadIdx.x] = out[threadIdx.x]; }
__global__ void misaligned(const int* in, int* out) {
  const Pack<int, 2> two = load_pack<2>(in + 5);
  if (threadIdx.x == 5) store_pack(out + 6, two);
}

__global__ void uninitialised_shared(const int* in, int* out) {
  __shared__ int tile[kThreads];
  const int t = static_cast<int>(threadIdx.x);
  if (t != 17) tile[t] = in[t];
  __syncthreads();
  out[t] = tile[t];
}

// Ends 16 bytes before what it writes.
__global__ void past_dynamic_shared(const int* in, int* out) {
  int* const tile = dynamic_shared<int>();
  const int t = static_cast<int>(threadIdx.x);
  tile[t] = in[t];
  __syncthreads();
  out[t] = tile[kThreads - 1 - t];
}

__global__ void local_of_another(const int* in, int* out) {
  __shared__ int* where[kThreads];
  const int t = static_cast<int>(threadIdx.x);
  int own = in[t];
  where[t] = &own;
  __syncthreads();
  out[t] = *where[kThreads - 1 - t];
  __syncthreads();
}

// Right: copies land, are waited for, then others read them; bytes past the valid ones are 0.
__global__ void async_copies(const int* in, int* out) {
  int* const tile = dynamic_shared<int>();
  const int t = static_cast<int>(threadIdx.x);
  if (t < kThreads / 4) async_copy<16>(tile + 4 * t, in + 4 * t, t == 3 ? 8 : 16);
  async_commit();
  async_wait<0>();
  __syncthreads();
  out[t] = tile[t];
}

__global__ void async_not_waited(const int* in, int* out) {
  int* const tile = dynamic_shared<int>();
  const int t = static_cast<int>(threadIdx.x);
  async_copy<4>(tile + t, in + t);
  async_commit();
  async_copy<4>(tile + kThreads + t, in + t);
  async_commit();
  async_wait<1>();
  out[t] = tile[t] + tile[kThreads + t];
}

__global__ void async_no_barrier(const int* in, int* out) {
  int* const tile = dynamic_shared<int>();
  const int t = static_cast<int>(threadIdx.x);
  async_copy<4>(tile + t, in + t);
  async_commit();
  async_wait<0>();
  out[t] = tile[kThreads - 1 - t];
}

// Right: a histogram, slots claimed by the first that comes, sums over the block and who is alike.
__global__ void collectives(const int* in, int* out) {
  __shared__ int counts[8], owner[8];
  const int t = static_cast<int>(threadIdx.x);
  if (t < 8) counts[t] = 0, owner[t] = -1;
  block_sync();
  const int key = in[t] & 7;
  atomic_add(counts + key, 1);
  atomic_swap_if(owner + key, -1, key);
  block_sync();
  int total;
  const int before = block_exclusive_sum(counts[key], total);
  const int again = block_exclusive_sum(1, total);
  const bool any = block_any(t == 63), none = block_any(false);
  out[t] = before + (again == t) * 10000 + (total == kThreads) * 20000 + (owner[key] == key) * 40000 +
           (any && !none) * 80000 + __popc(warp_match(key)) * 1000000 + (warp_sum(1) == 32) * 100000000 +
           (warp_ballot(key == 0) != 0) * 200000000;
}

__global__ void atomic_and_plain(const int* in, int* out) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  block_sync();
  atomic_add(&count, in[threadIdx.x]);
  out[threadIdx.x] = count;  // what has been added by then?
}

template <void (*Kernel)(const int*, int*), int SharedBytes = 0>
const char* start(const int* in, int* out, void* stream) {
  return sparsecore::cuda::launch(Kernel, {dim3(3), dim3(kThreads), SharedBytes, stream}, in, out);
}

}  // namespace

const Case cases[] = {
    {"mirror", start<mirror>},
    {"warp_barrier", start<warp_barrier>},
    {"async_copies", start<async_copies, kThreads * 4>},
    {"collectives", start<collectives>},
    {"missing_barrier", start<missing_barrier>},
    {"missing_second_barrier", start<missing_second_barrier>},
    {"missing_warp_barrier", start<missing_warp_barrier>},
    {"divergent_barrier", start<divergent_barrier>},
    {"two_barriers", start<two_barriers>},
    {"lane_left", start<lane_left>},
    {"masks_differ", start<masks_differ>},
    {"shuffle_from_outside", start<shuffle_from_outside>},
    {"read_past_end", start<read_past_end>},
    {"write_before_begin", start<write_before_begin>},
    {"write_input", start<write_input>},
    {"misaligned", start<misaligned>},
    {"uninitialised_shared", start<uninitialised_shared>},
    {"past_dynamic_shared", start<past_dynamic_shared, kThreads * 4 - 16>},
    {"local_of_another", start<local_of_another>},
    {"async_not_waited", start<async_not_waited, kThreads * 8>},
    {"async_no_barrier", start<async_no_barrier, kThreads * 4>},
    {"atomic_and_plain", start<atomic_and_plain>},
};
const int case_count = sizeof(cases) / sizeof(cases[0]);

}  // namespace self_tests
