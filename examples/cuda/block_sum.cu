// Sums an array with one partial sum per thread block: an example for the CUDA emulator, which nvcc compiles too.
//
//   cd tests && python -m emulation.program ../examples/cuda/block_sum.cu
//
// With -D WITHOUT_BARRIER, the barrier of the reduction is left out. On many GPUs the result is still right most of the
// time; the emulator reports the race.
#include <cuda_runtime.h>

#include <cstdio>
#include <vector>

constexpr int kThreads = 128;

__global__ void block_sum(const float* __restrict__ values, float* __restrict__ sums, int count) {
  __shared__ float partial[kThreads];
  float total = 0;
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < count; i += gridDim.x * kThreads) total += values[i];
  partial[threadIdx.x] = total;
  __syncthreads();
  // Halve the number of partial sums until one is left.
  for (int step = kThreads / 2; step > 0; step /= 2) {
    if (threadIdx.x < step) partial[threadIdx.x] += partial[threadIdx.x + step];
#if !defined(WITHOUT_BARRIER)
    __syncthreads();
#endif
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = partial[0];
}

int main() {
  constexpr int kCount = 5000, kBlocks = 6;
  std::vector<float> values(kCount, 1.0f), sums(kBlocks);
  float *device_values, *device_sums;
  cudaMalloc(&device_values, kCount * sizeof(float));
  cudaMalloc(&device_sums, kBlocks * sizeof(float));
  cudaMemcpy(device_values, values.data(), kCount * sizeof(float), cudaMemcpyHostToDevice);
  block_sum<<<kBlocks, kThreads>>>(device_values, device_sums, kCount);
  cudaMemcpy(sums.data(), device_sums, kBlocks * sizeof(float), cudaMemcpyDeviceToHost);
  cudaFree(device_values);
  cudaFree(device_sums);
  float total = 0;
  for (float sum : sums) total += sum;
  std::printf("sum %.0f, expected %d\n", total, kCount);
  return total == kCount ? 0 : 1;
}
