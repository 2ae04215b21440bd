// What kernels need of CUDA, under names that also g++ can give them: the same sources are compiled by nvcc for the device
// and by g++ for tests/emulation, which runs them on the CPU and checks them. Kernels include this and ptx.cuh alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "types.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "emulation.h"
#endif

#define GPU_DEVICE __device__ __forceinline__

namespace danet {
namespace gpu {

template <typename T>
struct Same {
  using type = T;
};

// GPU_SHARED(name, Type[3][4]); declares shared memory of a block. GPU_DYNAMIC_SHARED(Type, name); declares a pointer to
// that of Launch::shared bytes, aligned to 128.
#if defined(__CUDACC__)
#define GPU_SHARED(name, ...) __shared__ __align__(16) typename ::danet::gpu::Same<__VA_ARGS__>::type name
#define GPU_DYNAMIC_SHARED(Type, name)                                    \
  extern __shared__ __align__(128) unsigned char danet_dynamic_shared[]; \
  Type* name = reinterpret_cast<Type*>(danet_dynamic_shared)
using Stream = cudaStream_t;
#else
#define GPU_SHARED(name, ...) EMULATION_SHARED(name, __VA_ARGS__)
#define GPU_DYNAMIC_SHARED(Type, name) Type* name = static_cast<Type*>(::emulation::dynamic_shared())
using Stream = void*;
#endif

// --- host: launches ---------------------------------------------------------------------------------------------------

struct Launch {
  dim3 grid, block;
  size_t shared;  // bytes of dynamic shared memory
  Stream stream;
};

// Starts kernel(arguments...); throws where it cannot be. `what` names the operator.
template <typename... Parameters, typename... Arguments>
void launch(const char* what, void (*kernel)(Parameters...), const Launch& how, Arguments&&... arguments) {
#if defined(__CUDACC__)
  cudaError_t error = cudaSuccess;
  if (how.shared > 48 * 1024)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(how.shared));
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config{};
    config.gridDim = how.grid, config.blockDim = how.block;
    config.dynamicSmemBytes = how.shared, config.stream = how.stream;
    error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  }
  if (error != cudaSuccess) {
    cudaGetLastError();  // it is reported here and must not be found again by others
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
  }
#else
  auto body = [&] { kernel(static_cast<Parameters>(arguments)...); };
  emulation::run(
      what, how.grid, how.block, how.shared, how.stream, [](void* b) { (*static_cast<decltype(body)*>(b))(); }, &body);
#endif
}

// Streaming multiprocessors of the current device.
inline int multiprocessors() {
#if defined(__CUDACC__)
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
    throw std::runtime_error("danet: the CUDA device does not answer");
  return count;
#else
  return 4;
#endif
}

// --- device: numbers --------------------------------------------------------------------------------------------------

GPU_DEVICE float to_compute(float value) { return value; }
GPU_DEVICE double to_compute(double value) { return value; }
GPU_DEVICE float to_compute(BFloat16 value) {
#if defined(__CUDACC__)
  return __uint_as_float(uint32_t(value.bits) << 16);
#else
  return emulation::to_float(value);
#endif
}
GPU_DEVICE float to_compute(Half value) {
#if defined(__CUDACC__)
  return __half2float(__ushort_as_half(value.bits));
#else
  return emulation::to_float(value);
#endif
}

// The largest int not above; the nearest int where there is none.
GPU_DEVICE int floor_to_int(float value) { return __float2int_rd(value); }
GPU_DEVICE int floor_to_int(double value) { return __double2int_rd(value); }
// Between 0 and 1; NaN is 0.
GPU_DEVICE float saturate(float value) { return __saturatef(value); }
GPU_DEVICE double saturate(double value) { return fmin(fmax(value, 0.0), 1.0); }

template <typename T>
struct Rounded;
template <>
struct Rounded<float> {
  static GPU_DEVICE float of(float value) { return value; }
};
template <>
struct Rounded<double> {
  static GPU_DEVICE double of(double value) { return value; }
};
template <>
struct Rounded<BFloat16> {
  static GPU_DEVICE BFloat16 of(float value) {
#if defined(__CUDACC__)
    return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
    return emulation::to_bfloat16(value);
#endif
  }
};
template <>
struct Rounded<Half> {
  static GPU_DEVICE Half of(float value) {
#if defined(__CUDACC__)
    return {__half_as_ushort(__float2half_rn(value))};
#else
    return emulation::to_half(value);
#endif
  }
};
// The nearest T; ties to even.
template <typename T>
GPU_DEVICE T from_compute(Compute<T> value) {
  return Rounded<T>::of(value);
}

// 16 bytes of values, moved as one.
template <typename T>
struct alignas(16) Packet {
  static constexpr int kSize = 16 / int(sizeof(T));
  T values[kSize];
};
// kCount values, moved as one; p must be aligned to their size.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) AlignedArray {
  T values[kCount];
};
// The group at `from` or, where that must not be read, zeros; by words, for of halves the compiler chooses each.
template <int kCount, typename T>
GPU_DEVICE AlignedArray<T, kCount> load(const T* from, bool valid = true) {
  AlignedArray<T, kCount> group{};
#if defined(__CUDACC__)
  if constexpr (sizeof(T) * kCount >= 4) {
    AlignedArray<uint32_t, sizeof(T) * kCount / 4> words{};
    if (valid) words = *reinterpret_cast<const decltype(words)*>(from);
    memcpy(&group, &words, sizeof group);
    return group;
  }
#endif
  if (valid) group = *reinterpret_cast<const AlignedArray<T, kCount>*>(from);
  return group;
}

template <typename T, int kCount>
struct Numbers {
  Compute<T> values[kCount];
};
template <typename T, int kCount>
GPU_DEVICE Numbers<T, kCount> to_compute(const AlignedArray<T, kCount>& group) {
  Numbers<T, kCount> numbers;
  if constexpr (std::is_same_v<T, BFloat16> && kCount % 2 == 0) {  // an instruction a number: the compiler takes two
    AlignedArray<uint32_t, kCount / 2> words;
    memcpy(&words, &group, sizeof words);
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      numbers.values[i] = __uint_as_float(i % 2 == 0 ? words.values[i / 2] << 16 : words.values[i / 2] & 0xffff0000u);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) numbers.values[i] = to_compute(group.values[i]);
  }
  return numbers;
}

// Pixel i of image n.
struct Pixel {
  int64_t n, i;
};
// Pixel number n * P + i of N images of P pixels; 64-bit divisions are slow and mostly not needed.
GPU_DEVICE Pixel locate(int64_t N, int64_t P, int64_t pixel) {
  if (N == 1) return {0, pixel};
  const int64_t n = (pixel | P) >> 32 == 0 ? uint32_t(pixel) / uint32_t(P) : pixel / P;
  return {n, pixel - n * P};
}

// Sum over the lanes of a warp that differ in the bits below kLanes (a power of two); all of them get it.
template <int kLanes, typename A>
GPU_DEVICE A sum_lanes(A value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}
template <int kLanes, typename A>
GPU_DEVICE A max_lanes(A value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    A other = __shfl_xor_sync(~0u, value, step);
    value = other > value || other != other ? other : value;
  }
  return value;
}

}  // namespace gpu
}  // namespace danet
