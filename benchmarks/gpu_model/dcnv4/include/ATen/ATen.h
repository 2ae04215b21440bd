// Stands for the headers of PyTorch that DCNv4's kernels include, so that nvcc compiles them without PyTorch: the type
// at::Half, at::opmath_type and AT_ASSERTM. Their other names are not used on the device.
#pragma once

#include <cuda_fp16.h>

#include <stdexcept>

#define AT_ASSERTM(condition, ...) \
  do { \
    if (!(condition)) throw std::runtime_error("assertion of DCNv4 failed"); \
  } while (false)

namespace at {

// As PyTorch's: arithmetic is that of float.
struct alignas(2) Half {
  __half bits;
  Half() = default;
  __host__ __device__ Half(float value) : bits(__float2half(value)) {}
  __host__ __device__ operator float() const { return __half2float(bits); }
};

template <typename T>
struct OpMath {
  using type = T;
};
template <>
struct OpMath<Half> {
  using type = float;
};
template <typename T>
using opmath_type = typename OpMath<T>::type;

}  // namespace at
