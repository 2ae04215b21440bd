// Small kernels whose instructions, transactions and results are known; test_synthetic.py counts them.
#include "../../csrc/common/ptx.cuh"

using namespace danet;

extern "C" {

// Every lane copies 16 bytes; neighboring lanes have neighboring addresses.
__global__ void copy_packets(const float4* from, float4* to) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  to[i] = from[i];
}

// Every lane reads 4 bytes, `stride` floats apart.
__global__ void read_strided(const float* from, float* to, int stride) { to[threadIdx.x] = from[threadIdx.x * stride]; }

// Lanes read shared memory, `stride` floats apart.
__global__ void shared_strided(float* to, int stride) {
  __shared__ float values[32 * 33];
  for (int i = threadIdx.x; i < 32 * 33; i += blockDim.x) values[i] = float(i);
  __syncthreads();
  to[threadIdx.x] = values[threadIdx.x % 32 * stride];
}

// The warps below `busy` execute a chain of `count` multiply-adds.
__global__ void busy_warps(float* to, float a, int busy, int count) {
  float x = to[threadIdx.x];
  if (threadIdx.x / 32 < busy) {
#pragma unroll 1
    for (int i = 0; i < count; ++i) x = x * a + 1;
  }
  to[threadIdx.x] = x;
}

// Odd and even lanes take different paths.
__global__ void diverge(int* to) {
  int x = to[threadIdx.x];
  if (threadIdx.x % 2) {
#pragma unroll 1
    for (int i = 0; i < 10; ++i) x = x * 3 + 1;
  } else {
#pragma unroll 1
    for (int i = 0; i < 20; ++i) x = x * 5 + 2;
  }
  to[threadIdx.x] = x + __shfl_xor_sync(~0u, x, 1);
}

// Follows `count` pointers, one after the other.
__global__ void chase(const long long* next, long long* to, int count) {
  long long i = threadIdx.x;
#pragma unroll 1
  for (int k = 0; k < count; ++k) i = next[i];
  to[threadIdx.x] = i;
}

// Reductions of four floats. full: the lanes of a pair fill the sectors that they touch; else every lane has a sector of
// its own, half of which it fills.
__global__ void reduce_packets(float* to, int full) {
  const float ones[4] = {1, 2, 3, 4};
  gpu::atomic_add_x4(to + threadIdx.x * (full ? 4 : 8), ones);
}

// out = a * b by ldmatrix and mma: a [16, 16] and b [8, 16] (transposed) of halves.
__global__ void multiply(const Half* a, const Half* b, float* out) {
  __shared__ __align__(16) Half left[16][16], right[8][16];
  const int lane = threadIdx.x;
  gpu::cp_async<16>(&left[lane / 2][lane % 2 * 8], a + lane * 8, true);
  if (lane < 16) gpu::cp_async<16>(&right[lane / 2][lane % 2 * 8], b + lane * 8, lane != 15);
  gpu::cp_async_commit();
  gpu::cp_async_wait<0>();
  __syncthreads();
  uint32_t x[4], y[4];
  gpu::ldmatrix_x4<false>(x, &left[lane % 16][lane / 16 * 8]);
  gpu::ldmatrix_x4<false>(y, &right[lane % 8][lane / 8 % 2 * 8]);
  float sums[4] = {};
  const uint32_t columns[2] = {y[0], y[1]};
  gpu::mma_m16n8k16<Half>(sums, x, columns);
  for (int i = 0; i < 4; ++i) out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

// Every block of a cluster sums the values of all blocks of the cluster.
__global__ void sum_cluster(int* to) {
  __shared__ int values[32];
  values[threadIdx.x] = blockIdx.x * 100 + threadIdx.x;
  gpu::cluster_arrive();
  gpu::cluster_wait();
  int sum = 0;
  for (unsigned rank = 0; rank < gpu::cluster_size(); ++rank) sum += *gpu::map_shared(values + threadIdx.x, rank);
  gpu::cluster_arrive();
  gpu::cluster_wait();
  to[blockIdx.x * 32 + threadIdx.x] = gpu::cluster_rank() == 1 ? -sum : sum;
}

// Every block writes its number to the shared memory of the next block of the cluster.
__global__ void write_next_block(int* to) {
  __shared__ int values[32];
  const unsigned size = gpu::cluster_size();
  gpu::cluster_arrive();
  gpu::cluster_wait();
  *gpu::map_shared(values + threadIdx.x, (gpu::cluster_rank() + 1) % size) = blockIdx.x * 100 + threadIdx.x;
  gpu::cluster_arrive();
  gpu::cluster_wait();
  to[blockIdx.x * 32 + threadIdx.x] = values[threadIdx.x];
}

// The approximate functions, and the rounding to tf32.
__global__ void functions(const float* from, float* to) {
  const float x = from[threadIdx.x];
  to[threadIdx.x] = gpu::fast_exp2(x);
  to[32 + threadIdx.x] = gpu::fast_reciprocal(x);
  to[64 + threadIdx.x] = __uint_as_float(gpu::to_tf32(x));
  to[96 + threadIdx.x] = x / 3.0f;
}

// Each thread adds `count` values from its stack, which the index of a loop addresses.
__global__ void sum_stack(int* to, int count) {
  int values[8];
  for (int i = 0; i < 8; ++i) values[i] = int(threadIdx.x) * i;
  for (int i = 0; i < count; ++i) values[(i * 3) % 8] += values[(i * 5 + 1) % 8];
  to[threadIdx.x] = values[0] + values[7];
}

// For each lane, the lanes of its warp with the same value.
__global__ void match_values(const int* from, unsigned* to) {
  to[threadIdx.x] = __match_any_sync(~0u, from[threadIdx.x]);
}

// Groups of `lanes` lanes add their thread numbers, with a mask that is not the whole warp.
__global__ void sum_groups(int* to, int lanes) {
  const int lane = int(threadIdx.x) % 32;
  const unsigned mask = ((1u << lanes) - 1) << (lane / lanes * lanes);
  int sum = int(threadIdx.x);
  for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_down_sync(mask, sum, step);
  if (lane % lanes == 0) to[threadIdx.x / lanes] = sum;
}

}  // extern "C"
