// The interface between the CPU kernels and the code that calls them. A `*_kernels.cpp` file is plain C++ without
// torch. It is compiled once per instruction set, into a namespace of that name, and exports one table of function
// pointers per dtype. The `*_cpu.cpp` file beside it (the torch operator) picks the table for the processor that it
// runs on.
#pragma once

#include <cstdint>

// Marks functions that both the CPU and the CUDA kernels call.
#if defined(__CUDACC__)
#define DANET_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DANET_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace danet {

// The values are those of torch's ScalarType.
enum class DType : int8_t { kHalf = 5, kFloat = 6, kDouble = 7, kBFloat16 = 15 };

// A channels-last image tensor [N, C, H, W]: the C channels of a pixel are contiguous. Strides are in elements.
struct ImageView {
  void* data;
  int64_t image_stride, pixel_stride;

  template <typename T>
  DANET_HOST_DEVICE T* pixel(int64_t n, int64_t i) const {
    return static_cast<T*>(data) + n * image_stride + i * pixel_stride;
  }
};

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The instruction set to use: the best one of this processor, or the one that the environment variable
// DANET_CPU_CAPABILITY (default, avx2 or avx512) names, if the processor supports it. Determined once per process.
Isa isa();

// Whether the processor has the instructions AVX512_BF16, and isa() is AVX-512.
bool has_avx512_bf16();

// What computes products of bfloat16 (amx.h) in addition to the instruction set: the matrix unit AMX if the processor
// and the operating system support it, else AVX512_BF16 if the processor has it, else nothing.
// DANET_CPU_CAPABILITY=avx512-bf16 selects AVX512_BF16 on processors with AMX, too; default, avx2 and avx512 switch
// both off. kEmulated is a slow replacement in plain C++ for tests on any processor; DANET_CPU_CAPABILITY=amx-emulated
// selects it.
enum class MatrixUnit { kNone, kAmx, kEmulated, kAvx512Bf16 };
MatrixUnit matrix_unit();
// Whether the matrix unit multiplies bfloat16 faster than the vector units multiply float32. AVX512_BF16 does on AMD
// processors; Intel processors start one VDPBF16PS every two cycles, but two multiply-adds of float32 vectors per
// cycle.
bool is_bfloat16_fast();

// DANET_DECLARE_KERNELS declares `const Table& name(DType)` for every instruction set; DANET_KERNELS calls the one to
// use. DANET_ONLY_ISA: the only instruction set that is built.
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

// The same for the kernels on the matrix unit (files named *_tiles.cpp). DANET_TILE_KERNELS requires a matrix unit.
// DANET_HAS_AMX: the compiler can compile for AMX and AVX512_BF16.
#if defined(DANET_HAS_AMX)
#define DANET_DECLARE_TILE_KERNELS(Table, name) \
  namespace amx { const Table& name(); } \
  namespace avx512_bf16 { const Table& name(); } \
  namespace emulated_amx { const Table& name(); }
#define DANET_TILE_KERNELS(name) \
  (::danet::matrix_unit() == ::danet::MatrixUnit::kAmx           ? ::danet::amx::name() \
   : ::danet::matrix_unit() == ::danet::MatrixUnit::kAvx512Bf16 ? ::danet::avx512_bf16::name() \
                                                                : ::danet::emulated_amx::name())
#else
#define DANET_DECLARE_TILE_KERNELS(Table, name) namespace emulated_amx { const Table& name(); }
#define DANET_TILE_KERNELS(name) (::danet::emulated_amx::name())
#endif

}  // namespace danet
