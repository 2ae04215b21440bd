// The part of the CUDA runtime that programs use, for `python -m emulation.program`: device memory is host memory, and
// launches run in the emulator. emulation/program.py turns kernel<<<...>>>(...) into configure(kernel, ...)(...).
#pragma once

#include <cstdlib>
#include <exception>
#include <tuple>

#include "emulation.h"

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2 };
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};

inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::malloc(bytes);
  return *memory == nullptr && bytes > 0 ? cudaErrorMemoryAllocation : cudaSuccess;
}
template <typename T>
cudaError_t cudaMalloc(T** memory, size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(memory), bytes);
}
template <typename T>
cudaError_t cudaMallocManaged(T** memory, size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(memory), bytes);
}
inline cudaError_t cudaFree(void* memory) {
  emulation::synchronize();
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  emulation::synchronize();
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t = 0) {
  return cudaMemcpy(to, from, bytes, kind);
}
inline cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  emulation::synchronize();
  std::memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() {
  emulation::synchronize();
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaDeviceSynchronize(); }
inline cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = nullptr;  // all launches run in order
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }  // an error ends the program
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "out of memory"; }
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) {
  return cudaSuccess;
}
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8;

namespace emulation {

// A kernel and the sizes of its launch.
template <typename... Parameters>
struct Configured {
  void (*kernel)(Parameters...);
  LaunchSizes sizes;

  template <typename... Arguments>
  void operator()(Arguments&&... arguments) const {
    struct Call {
      void (*kernel)(Parameters...);
      std::tuple<Parameters...> arguments;
    } call{kernel, {static_cast<Parameters>(arguments)...}};
    Device device;
    try {
      run(
          "kernel", sizes, device.stream(),
          [](void* p) {
            const Call& call = *static_cast<Call*>(p);
            std::apply(call.kernel, call.arguments);
          },
          &call);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "error: %s\n", error.what());
      std::exit(1);
    }
  }
};

template <typename... Parameters>
Configured<Parameters...> configure(
    void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes = 0, cudaStream_t = nullptr) {
  return {kernel, {grid, block, shared_bytes, 1, false}};
}

}  // namespace emulation
