// The CUDA features that the kernels use, under names that g++ can provide too. nvcc compiles the same sources for the
// GPU; g++ compiles them for tests/emulation, which runs and checks them on the CPU. Kernels use CUDA only through this
// file and ptx.cuh.
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
struct TypeIdentity {
  using type = T;
};

// GPU_SHARED(name, Type[3][4]); declares a static shared memory array. GPU_DYNAMIC_SHARED(Type, name); declares a
// pointer to the dynamic shared memory of the launch (Launch::shared bytes, aligned to 128 bytes).
#if defined(__CUDACC__)
#define GPU_SHARED(name, ...) __shared__ __align__(16) typename ::danet::gpu::TypeIdentity<__VA_ARGS__>::type name
#define GPU_DYNAMIC_SHARED(Type, name)                                    \
  extern __shared__ __align__(128) unsigned char danet_dynamic_shared[]; \
  Type* name = reinterpret_cast<Type*>(danet_dynamic_shared)
using Stream = cudaStream_t;
#else
#define GPU_SHARED(name, ...) EMULATION_SHARED(name, __VA_ARGS__)
#define GPU_DYNAMIC_SHARED(Type, name) Type* name = static_cast<Type*>(::emulation::dynamic_shared())
using Stream = void*;
#endif

// --- host: launches -------------------------------------------------------------------------------------------------

// Bytes of shared memory that a block may use on every device without opting in to more.
constexpr int kDefaultSharedBytes = 48 * 1024;

struct Launch {
  dim3 grid, block;
  size_t shared;  // bytes of dynamic shared memory
  Stream stream;
  // Blocks of a thread block cluster, which divides grid.x: consecutive blocks run at the same time and can access each
  // other's shared memory. More than 1 needs has_clusters().
  unsigned cluster = 1;
  // Whether the kernel may start before the previous launch has ended (programmatic dependent launch). Each of its
  // blocks must call wait_for_previous_launch() (ptx.cuh) before it accesses memory that earlier launches write, and
  // before it writes memory that they access. Such memory must not be read through const T* __restrict__ or __ldg
  // either, because the compiler may move these loads before the wait.
  bool programmatic = false;
};

// Launches kernel(arguments...). Throws std::runtime_error if the launch fails; its text begins with `op`.
template <typename... Parameters, typename... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), const Launch& options, Arguments&&... arguments) {
#if defined(__CUDACC__)
  cudaError_t error = cudaSuccess;
  if (options.shared > kDefaultSharedBytes)  // more must be requested
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(options.shared));
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config{};
    config.gridDim = options.grid, config.blockDim = options.block;
    config.dynamicSmemBytes = options.shared, config.stream = options.stream;
    cudaLaunchAttribute attributes[2];
    config.attrs = attributes;
    if (options.cluster > 1) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = options.cluster;
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
    if (options.programmatic) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
    }
    error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  }
  if (error != cudaSuccess) {
    cudaGetLastError();  // clear the error: it is reported here, not by a later CUDA call
    throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error));
  }
#else
  const emulation::LaunchSizes sizes{
      options.grid, options.block, options.shared, options.cluster, options.programmatic};
  if (emulation::settings.observer) {
    emulation::ParameterBytes bytes;
    (bytes.add(static_cast<Parameters>(arguments)), ...);
    if (emulation::observe({op, reinterpret_cast<const void*>(kernel), sizes, bytes.data, bytes.size})) return;
  }
  auto body = [&] { kernel(static_cast<Parameters>(arguments)...); };
  emulation::run(op, sizes, options.stream, [](void* b) { (*static_cast<decltype(body)*>(b))(); }, &body);
#endif
}

#if defined(__CUDACC__)
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&value, attribute, device) != cudaSuccess)
    throw std::runtime_error("danet: cannot query the CUDA device");
  return value;
}
#endif

// Number of streaming multiprocessors of the current device.
inline int multiprocessor_count() {
#if defined(__CUDACC__)
  return device_attribute(cudaDevAttrMultiProcessorCount);
#else
  return emulation::settings.multiprocessors;
#endif
}

#if defined(__CUDACC__)
// Tells for which architecture the kernels were compiled. A template, so that several source files may define it.
template <int>
__global__ void architecture_probe() {}
#endif

// Whether the current device has thread block clusters (sm_90 and later), and the kernels were compiled for it: PTX of
// an older architecture, which the driver compiles for the device, has neither the cluster barriers nor the wait of a
// programmatic launch.
inline bool has_clusters() {
#if defined(__CUDACC__)
  cudaFuncAttributes compiled{};
  if (cudaFuncGetAttributes(&compiled, architecture_probe<0>) != cudaSuccess)
    throw std::runtime_error("danet: cannot query the CUDA kernels");
  return compiled.ptxVersion >= 90 && device_attribute(cudaDevAttrClusterLaunch) != 0;
#else
  return emulation::settings.has_clusters;
#endif
}

// --- device: conversions --------------------------------------------------------------------------------------------

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

// floor(value), saturated to the int range; unspecified for NaN.
GPU_DEVICE int floor_to_int(float value) { return __float2int_rd(value); }
GPU_DEVICE int floor_to_int(double value) { return __double2int_rd(value); }
// The same, saturated to the range of unsigned integers: 0 for a negative value.
GPU_DEVICE uint32_t floor_to_unsigned(float value) { return __float2uint_rd(value); }
GPU_DEVICE uint32_t floor_to_unsigned(double value) { return __double2uint_rd(value); }
// value clamped to [0, 1]; NaN gives 0.
GPU_DEVICE float saturate(float value) { return __saturatef(value); }
GPU_DEVICE double saturate(double value) { return fmin(fmax(value, 0.0), 1.0); }

template <typename T>
struct FromCompute;
template <>
struct FromCompute<float> {
  static GPU_DEVICE float convert(float value) { return value; }
};
template <>
struct FromCompute<double> {
  static GPU_DEVICE double convert(double value) { return value; }
};
template <>
struct FromCompute<BFloat16> {
  static GPU_DEVICE BFloat16 convert(float value) {
#if defined(__CUDACC__)
    return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
    return emulation::to_bfloat16(value);
#endif
  }
};
template <>
struct FromCompute<Half> {
  static GPU_DEVICE Half convert(float value) {
#if defined(__CUDACC__)
    return {__half_as_ushort(__float2half_rn(value))};
#else
    return emulation::to_half(value);
#endif
  }
};
// Rounds to the nearest T, ties to even.
template <typename T>
GPU_DEVICE T from_compute(Compute<T> value) {
  return FromCompute<T>::convert(value);
}

// --- device: vector loads -------------------------------------------------------------------------------------------

// 16 bytes of values, which one instruction loads or stores.
template <typename T>
struct alignas(16) Packet {
  static constexpr int kSize = 16 / int(sizeof(T));
  T values[kSize];
};
// kCount values, which one instruction loads or stores; a pointer to them must be aligned to their total size.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) AlignedArray {
  T values[kCount];
};
// Loads kCount values; returns zeros, and reads nothing, if !valid.
// NOTE: 16-bit types are loaded as 32-bit words, because nvcc splits predicated loads of 16-bit vectors.
template <int kCount, typename T>
GPU_DEVICE AlignedArray<T, kCount> load(const T* from, bool valid = true) {
  AlignedArray<T, kCount> array{};
#if defined(__CUDACC__)
  if constexpr (sizeof(T) * kCount >= 4) {
    AlignedArray<uint32_t, sizeof(T) * kCount / 4> words{};
    if (valid) words = *reinterpret_cast<const decltype(words)*>(from);
    memcpy(&array, &words, sizeof array);
    return array;
  }
#endif
  if (valid) array = *reinterpret_cast<const AlignedArray<T, kCount>*>(from);
  return array;
}

// Loads kCount values that no thread writes during the launch.
// NOTE: __ldg loads 8 bytes at once, while nvcc may split another load of this size into two requests.
template <int kCount, typename T>
GPU_DEVICE AlignedArray<T, kCount> load_constant(const T* from) {
#if defined(__CUDACC__)
  if constexpr (sizeof(T) * kCount == 8) {
    const uint2 words = __ldg(reinterpret_cast<const uint2*>(from));
    AlignedArray<T, kCount> array;
    memcpy(&array, &words, sizeof array);
    return array;
  }
#endif
  return load<kCount>(from);
}

template <typename T, int kCount>
struct ComputeArray {
  Compute<T> values[kCount];
};
// Converts every value.
// NOTE: bfloat16 is widened by shift and mask, one instruction per value; nvcc would use two.
template <typename T, int kCount>
GPU_DEVICE ComputeArray<T, kCount> to_compute(const AlignedArray<T, kCount>& array) {
  ComputeArray<T, kCount> converted;
  if constexpr (std::is_same_v<T, BFloat16> && kCount % 2 == 0) {
    AlignedArray<uint32_t, kCount / 2> words;
    memcpy(&words, &array, sizeof words);
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      converted.values[i] = __uint_as_float(i % 2 == 0 ? words.values[i / 2] << 16 : words.values[i / 2] & 0xffff0000u);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) converted.values[i] = to_compute(array.values[i]);
  }
  return converted;
}

// Finds out whether all values that were added are finite.
template <typename T>
class FiniteCheck {
  Compute<T> sum_ = 0;  // of the products with 0: 0 or NaN
  uint32_t pairs_ = 0;  // the same for pairs of Half or BFloat16, whose products take one instruction

 public:
  template <int kCount>
  GPU_DEVICE void add(const AlignedArray<T, kCount>& values) {
#if defined(__CUDACC__)
    constexpr bool kInPairs = sizeof(T) == 2 && kCount % 2 == 0;
#else
    constexpr bool kInPairs = false;
#endif
    if constexpr (kInPairs) {
      AlignedArray<uint32_t, kCount / 2> words;
      memcpy(&words, &values, sizeof words);
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) add_pair(words.values[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) sum_ += to_compute(values.values[i]) * Compute<T>(0);
    }
  }
  GPU_DEVICE bool all_finite() const { return sum_ == 0 && pairs_ == 0; }

 private:
  GPU_DEVICE void add_pair(uint32_t bits) {
#if defined(__CUDACC__)
    using Pair = std::conditional_t<std::is_same_v<T, Half>, __half2, __nv_bfloat162>;
    Pair pair, sum, zero;
    const uint32_t zero_bits = 0;
    memcpy(&pair, &bits, 4), memcpy(&sum, &pairs_, 4), memcpy(&zero, &zero_bits, 4);
    sum = __hfma2(pair, zero, sum);  // 0 + (-0) is 0: the bits are 0 unless the sum is NaN
    memcpy(&pairs_, &sum, 4);
#endif
  }
};

// --- device: indices and warps --------------------------------------------------------------------------------------

// Divides integers from 0 to 2^31 - 1 by a divisor that the host knows: a product and a shift instead of 20
// instructions. With s = 31 + shift, shift = ceil(log2(divisor)), the rounded factor 2^s / divisor has an error below
// 2^-31 / divisor.
struct Divisor {
  uint32_t divisor, factor, shift;

  explicit Divisor(int64_t value) : divisor(uint32_t(value)), factor(0), shift(0) {
    while (int64_t(1) << shift < value) ++shift;
    factor = uint32_t(((uint64_t(1) << (31 + shift)) + divisor - 1) / divisor);
  }
  // The upper half of 2 * a * factor is a * factor / 2^31.
  GPU_DEVICE int divide(int a) const { return int(__umulhi(2 * uint32_t(a), factor) >> shift); }
};

// Pixel i of image n.
struct Pixel {
  int64_t n, i;
};
// Splits the flat index n * P + i over N images of P pixels.
// NOTE: divides in 32 bits where both numbers fit: 64-bit division is slow.
GPU_DEVICE Pixel split_pixel_index(int64_t N, int64_t P, int64_t pixel) {
  if (N == 1) return {0, pixel};
  const int64_t n = (pixel | P) >> 32 == 0 ? uint32_t(pixel) / uint32_t(P) : pixel / P;
  return {n, pixel - n * P};
}

// Sum over aligned groups of kLanes lanes of a warp (kLanes is a power of two); every lane gets the sum of its group.
template <int kLanes, typename A>
GPU_DEVICE A sum_lanes(A value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

}  // namespace gpu
}  // namespace danet
