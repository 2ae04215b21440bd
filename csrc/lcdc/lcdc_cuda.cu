// The torch operators lcdc and lcdc_backward on CUDA devices: choice of the kernel, grid size and memory. The kernels
// of lcdc_packets.cuh compute k = 3 and 5 with aligned channels; lcdc_rows.cuh computes all other cases.
#include <initializer_list>
#include <tuple>

#include "../common/device.h"
#include "lcdc_check.h"
#include "lcdc_packets.cuh"
#include "lcdc_rows.cuh"

namespace danet {
namespace {

constexpr int kBlocksPerSm = 16;               // of kernels that loop: several waves, so that the tail effect is small
constexpr int kTileElements = 2048;            // target size of a tile of lcdc_shared_rows
constexpr size_t kMaxSharedBytes = 96 * 1024;  // dynamic shared memory per block that all supported devices allow

using ImageViews = std::initializer_list<ImageView>;

// Calls body(kTaps, kRows, kJoined) with the template arguments of the packet kernels; returns false if they do not
// support this call. Forward processes more pixels per thread; backward uses the registers for more warps instead.
template <typename T, bool kBackward, typename Body>
bool dispatch_packets(const LcdcParams& p, const ImageViews& views, const Body& body) {
  if constexpr (sizeof(T) < 8) {
    const int64_t packets = p.C / gpu::Packet<T>::kSize;
    if ((p.k != 3 && p.k != 5) || packets > 128 || !fits_packets<T>(p.C, views)) return false;
    const auto with_rows = [&](auto taps) {
      if (packets <= 32) return body(taps, Constant<kBackward ? 1 : 2>{}, Constant<false>{});
      if (packets <= 64) return body(taps, Constant<2>{}, Constant<true>{});
      body(taps, Constant<4>{}, Constant<true>{});
    };
    p.k == 3 ? with_rows(Constant<3>{}) : with_rows(Constant<5>{});
    return true;
  }
  return false;
}

template <typename A>
Tensor empty_array(int64_t count, const Tensor& like) {
  constexpr ScalarType kType = sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float;
  return torch::stable::empty({count}, kType, std::nullopt, like.device(), std::nullopt, std::nullopt);
}

// The same as PacketLayout::pixels_per_warp, on the host.
template <typename T, int kRows, bool kJoined>
int pixels_per_warp(const LcdcParams& p) {
  return kJoined ? 1 : kRows * int(32 * gpu::Packet<T>::kSize / p.C);
}

// The launch parameters of lcdc_shared_rows. The rows are in shared memory or, if one does not fit, in a workspace in
// device memory. Launching fewer blocks bounds the size of the workspace.
template <typename T, bool kBackward>
struct SharedRowsLaunch {
  using A = Compute<T>;
  int pixels;  // per tile
  unsigned blocks;
  int64_t size;  // elements of A per block
  size_t shared = 0;
  Tensor memory;
  A* workspace = nullptr;

  SharedRowsLaunch(const LcdcParams& p, const Tensor& like) {
    const int64_t width = p.C + p.k - 1, all = p.shared ? p.N * p.P : p.N, arrays = kBackward ? 2 + p.gate : 1;
    DANET_CHECK(width < int64_t(1) << 30, "lcdc: too many channels or taps");
    pixels = int(std::max<int64_t>(1, std::min(all, kTileElements / width)));
    size = arrays * pixels * width + (kBackward ? p.k : 0);
    int64_t max_blocks = int64_t(kBlocksPerSm) * gpu::multiprocessor_count();
    if (size * sizeof(A) <= kMaxSharedBytes) {
      shared = size_t(size) * sizeof(A);
    } else {
      max_blocks = std::max<int64_t>(1, std::min(max_blocks, (int64_t(1) << 26) / size));
    }
    if (kBackward) max_blocks = std::max<int64_t>(1, std::min(max_blocks, (int64_t(1) << 22) / p.k));
    blocks = unsigned(std::min(max_blocks, p.shared ? (all + pixels - 1) / pixels : p.P));
    if (shared > 0) return;
    memory = empty_array<A>(blocks * size, like);
    workspace = static_cast<A*>(memory.mutable_data_ptr());
  }
};

Tensor lcdc(const Tensor& input, const Tensor& weight, bool gate) {
  const LcdcParams sizes = check_lcdc(input, weight, gate);
  const DeviceGuard device_guard(input);
  const Image x(input), out(empty_image(input, input.sizes()));
  if (sizes.N * sizes.P * sizes.C == 0) return out.tensor;
  const Tensor weights = torch::stable::contiguous(weight);
  const ImageViews views = {x.view, out.view};
  const LcdcParams p = sizes.shared ? merge_images(sizes, views) : sizes;
  with_type(input, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    const T* taps = static_cast<const T*>(weights.const_data_ptr());
    const bool launched = dispatch_packets<T, /*kBackward=*/false>(p, views, [&](auto k, auto rows, auto joined) {
      constexpr int kTaps = decltype(k)::value, kRows = decltype(rows)::value;
      constexpr bool kJoined = decltype(joined)::value;
      const unsigned blocks = blocks_for("lcdc", p.N * p.P, kWarps * pixels_per_warp<T, kRows, kJoined>(p));
      gpu::launch(
          "lcdc", lcdc_forward_packets<T, kTaps, kRows, kJoined>, {blocks, kThreads, 0, device_guard.stream()}, p,
          PacketCounts(p.C, gpu::Packet<T>::kSize), x.view, taps, out.view);
    });
    if (launched) return;
    const SharedRowsLaunch<T, /*kBackward=*/false> call(p, input);
    gpu::launch(
        "lcdc", lcdc_shared_rows<T, /*kBackward=*/false>, {call.blocks, kThreads, call.shared, device_guard.stream()},
        p, call.pixels, x.view, x.view, taps, out.view, call.workspace, call.size, static_cast<A*>(nullptr),
        static_cast<T*>(nullptr));
  });
  return out.tensor;
}

std::tuple<Tensor, Tensor> lcdc_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, bool gate) {
  const LcdcParams sizes = check_lcdc(input, weight, gate);
  check_like("lcdc", "grad_output", grad_output, input, input.sizes());
  const DeviceGuard device_guard(input);
  const Image grad(grad_output), x(input), grad_input(empty_image(input, input.sizes()));
  Tensor grad_weight = torch::stable::empty(
      weight.sizes(), weight.scalar_type(), std::nullopt, weight.device(), std::nullopt, std::nullopt);
  if (sizes.N * sizes.P * sizes.C == 0) return {grad_input.tensor, torch::stable::zero_(grad_weight)};
  const Tensor weights = torch::stable::contiguous(weight);
  const ImageViews views = {grad.view, x.view, grad_input.view};
  const LcdcParams p = sizes.shared ? merge_images(sizes, views) : sizes;
  with_type(input, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    const T* taps = static_cast<const T*>(weights.const_data_ptr());
    T* result = static_cast<T*>(grad_weight.mutable_data_ptr());
    Tensor parts;
    unsigned blocks = 0;
    const auto partial = [&] {
      if (!p.shared) return static_cast<A*>(nullptr);
      parts = empty_array<A>(blocks * p.k, input);
      return static_cast<A*>(parts.mutable_data_ptr());
    };
    const bool launched = dispatch_packets<T, /*kBackward=*/true>(p, views, [&](auto k, auto rows, auto joined) {
      constexpr int kTaps = decltype(k)::value, kRows = decltype(rows)::value;
      constexpr bool kJoined = decltype(joined)::value;
      const PacketCounts counts(p.C, gpu::Packet<T>::kSize);
      if (p.shared) {
        const int block_pixels = kWarps * pixels_per_warp<T, kRows, kJoined>(p);
        blocks =
            std::min(blocks_for("lcdc", p.N * p.P, block_pixels), unsigned(kBlocksPerSm * gpu::multiprocessor_count()));
        return gpu::launch(
            "lcdc", lcdc_backward_packets<T, kTaps, kRows, kJoined>, {blocks, kThreads, 0, device_guard.stream()}, p,
            counts, grad.view, x.view, taps, grad_input.view, partial());
      }
      int slices = 1;
      while (slices < kWarps && 2 * slices <= p.N) slices *= 2;
      const int block_positions = kWarps / slices * pixels_per_warp<T, kRows, kJoined>(p);
      gpu::launch(
          "lcdc", lcdc_backward_positions<T, kTaps, kRows, kJoined>,
          {blocks_for("lcdc", p.P, block_positions), kThreads, 0, device_guard.stream()}, p, counts, slices, grad.view,
          x.view, taps, grad_input.view, result);
    });
    if (!launched) {
      const SharedRowsLaunch<T, /*kBackward=*/true> call(p, input);
      blocks = call.blocks;
      gpu::launch(
          "lcdc", lcdc_shared_rows<T, /*kBackward=*/true>, {blocks, kThreads, call.shared, device_guard.stream()}, p,
          call.pixels, grad.view, x.view, taps, grad_input.view, call.workspace, call.size, partial(), result);
    }
    if (p.shared)
      gpu::launch(
          "lcdc", lcdc_sum_parts<T>, {blocks_for("lcdc", p.k, 1), kThreads, 0, device_guard.stream()},
          static_cast<const A*>(parts.const_data_ptr()), int(blocks), result);
  });
  return {grad_input.tensor, grad_weight};
}

}  // namespace

DANET_CUDA_LIBRARY(library) {
  library.impl("lcdc", TORCH_BOX(&lcdc));
  library.impl("lcdc_backward", TORCH_BOX(&lcdc_backward));
}

}  // namespace danet
