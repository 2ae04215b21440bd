// Host code that all CUDA operators share: device and stream, dispatch by dtype, alignment checks, registration. With
// DANET_EMULATION (tests/emulation) the operators are registered as torch.ops.danet_emulated.*, on CPU tensors.
#pragma once

#include <initializer_list>

#include "gpu.cuh"
#include "tensor.h"

#if defined(DANET_EMULATION)
#define DANET_CUDA_LIBRARY(library) STABLE_TORCH_LIBRARY_IMPL(danet_emulated, CPU, library)
#else
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#define DANET_CUDA_LIBRARY(library) STABLE_TORCH_LIBRARY_IMPL(danet, CUDA, library)
#endif

namespace danet {

// RAII guard: makes the tensor's device the current device; stream() is torch's current stream on it.
class DeviceGuard {
 public:
#if defined(DANET_EMULATION)
  explicit DeviceGuard(const Tensor&) : stream_(guard_.stream()) {}
#else
  explicit DeviceGuard(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<gpu::Stream>(stream);
  }
#endif
  gpu::Stream stream() const { return stream_; }

 private:
#if defined(DANET_EMULATION)
  emulation::Device guard_;
#else
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  gpu::Stream stream_ = nullptr;
};

// An integer as a type, so that a generic lambda can pass it on as a template argument.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// Calls body(T{}) with the type of the tensor's elements.
template <typename Body>
void with_type(const Tensor& tensor, const Body& body) {
  switch (dtype_of(tensor)) {
    case DType::kDouble: return body(double{});
    case DType::kFloat: return body(float{});
    case DType::kHalf: return body(Half{});
    case DType::kBFloat16: return body(BFloat16{});
  }
}

// The binary logarithm of the number of lanes of a warp that share an item of this many packets: the smallest power of
// two that covers the packets, at most 32.
inline int log2_lanes_per_item(int64_t packets) {
  int log2_lanes = 0;
  while (log2_lanes < 5 && 1 << log2_lanes < packets) ++log2_lanes;
  return log2_lanes;
}

// Whether the address of every pixel is a multiple of `count` elements.
template <typename T>
bool is_aligned(const ImageView& view, int count) {
  return view.pixel_stride % count == 0 && view.image_stride % count == 0 &&
         reinterpret_cast<uintptr_t>(view.data) % (count * sizeof(T)) == 0;
}

// Whether the channels of every pixel (or of every channel group) are whole, aligned packets of 16 bytes.
template <typename T>
bool fits_packets(int64_t channels, std::initializer_list<ImageView> views) {
  constexpr int kSize = gpu::Packet<T>::kSize;
  return channels % kSize == 0 &&
         std::all_of(views.begin(), views.end(), [](const ImageView& view) { return is_aligned<T>(view, kSize); });
}

// Merges the images into one of N * P pixels if the strides allow it: the kernels then need no division by P.
template <typename Params>
Params merge_images(Params p, std::initializer_list<ImageView> views) {
  for (const ImageView& view : views)
    if (p.N > 1 && view.image_stride != p.P * view.pixel_stride) return p;
  p.P *= p.N;
  p.N = 1;
  return p;
}

// Number of blocks for `count` items with `per_block` items per block.
inline unsigned blocks_for(const char* op, int64_t count, int64_t per_block) {
  const int64_t blocks = (count + per_block - 1) / per_block;
  DANET_CHECK(blocks <= 0x7fffffff, op, ": too many elements for one kernel launch");
  return unsigned(blocks);
}

}  // namespace danet
