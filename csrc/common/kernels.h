// How code that knows torch reaches kernels that do not. A `*_kernels.cpp` is plain C++, compiled once for each
// instruction set into a namespace of that name; it exports one table of functions for each type, and the `*_cpu.cpp`
// beside it takes the table that fits the processor.
#pragma once

#include <cstdint>

// Of functions that the kernels of all devices share.
#if defined(__CUDACC__)
#define DANET_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DANET_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace danet {

// Numbered as torch's ScalarType.
enum class DType : int8_t { kHalf = 5, kFloat = 6, kDouble = 7, kBFloat16 = 15 };

// An image tensor [N, C, H, W] whose C channels of a pixel lie side by side. Strides in elements.
struct ImageView {
  void* data;
  int64_t image_stride, pixel_stride;

  template <typename T>
  DANET_HOST_DEVICE T* pixel(int64_t n, int64_t i) const {
    return static_cast<T*>(data) + n * image_stride + i * pixel_stride;
  }
};

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The best instruction set of this processor, or what the environment variable DANET_CPU_CAPABILITY (default, avx2,
// avx512) asks for where it has that. Found once.
Isa isa();

// `const Table& name(DType)` of every instruction set, and the one to use; DANET_ONLY_ISA: the only one that is built.
#if defined(DANET_ONLY_ISA)
#define DANET_DECLARE_KERNELS(Table, name) \
  namespace DANET_ONLY_ISA { const Table& name(DType); }
#define DANET_KERNELS(name, dtype) (::danet::DANET_ONLY_ISA::name(dtype))
#elif defined(__x86_64__)
#define DANET_DECLARE_KERNELS(Table, name) \
  namespace baseline { const Table& name(DType); } \
  namespace avx2 { const Table& name(DType); } \
  namespace avx512 { const Table& name(DType); }
#define DANET_KERNELS(name, dtype) \
  (::danet::isa() == ::danet::Isa::kAvx512 ? ::danet::avx512::name(dtype) \
   : ::danet::isa() == ::danet::Isa::kAvx2 ? ::danet::avx2::name(dtype) \
                                           : ::danet::baseline::name(dtype))
#else
#define DANET_DECLARE_KERNELS(Table, name) namespace baseline { const Table& name(DType); }
#define DANET_KERNELS(name, dtype) (::danet::baseline::name(dtype))
#endif

}  // namespace danet
