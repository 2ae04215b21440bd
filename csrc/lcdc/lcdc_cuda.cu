// LCDC on CUDA devices: which kernel, how many blocks, which memory. Where packets fit and k is 3 or 5, lcdc_packets.cuh;
// all else lcdc_rows.cuh.
#include <initializer_list>
#include <tuple>

#include "../common/device.h"
#include "lcdc_check.h"
#include "lcdc_packets.cuh"
#include "lcdc_rows.cuh"

namespace danet {
namespace {

constexpr int kBlocksOfSm = 16;             // where blocks loop: several waves, so that the last one costs little
constexpr int kTile = 2048;                 // numbers of a tile of short rows
constexpr size_t kSharedBytes = 96 * 1024;  // what every device gives a block that asks

using Views = std::initializer_list<ImageView>;

// body(kTaps, kRows, kJoined) of the packets' kernels; false where there is none. kRows: more pixels at a time forward,
// while backward needs the registers for more warps.
template <typename T, bool kBackward, typename Body>
bool specialise(const LcdcParams& p, const Views& views, const Body& body) {
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
Tensor numbers(int64_t count, const Tensor& like) {
  constexpr ScalarType kType = sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float;
  return torch::stable::empty({count}, kType, std::nullopt, like.device(), std::nullopt, std::nullopt);
}

// Of a warp, as Place has it.
template <typename T, int kRows, bool kJoined>
int warp_pixels(const LcdcParams& p) {
  return kJoined ? 1 : kRows * int(32 * gpu::Packet<T>::kSize / p.C);
}

// A call of through_rows: rows in shared memory or, where one does not fit, in device memory of a bounded size.
template <typename T, bool kBackward>
struct RowsCall {
  using A = Compute<T>;
  int pixels;  // of a tile
  unsigned blocks;
  int64_t size;  // numbers of a block
  size_t shared = 0;
  Tensor memory;
  A* workspace = nullptr;

  RowsCall(const LcdcParams& p, const Tensor& like) {
    const int64_t width = p.C + p.k - 1, all = p.shared ? p.N * p.P : p.N, arrays = kBackward ? 2 + p.gate : 1;
    DANET_CHECK(width < int64_t(1) << 30, "lcdc: too many channels or taps");
    pixels = int(std::max<int64_t>(1, std::min(all, kTile / width)));
    size = arrays * pixels * width + (kBackward ? p.k : 0);
    int64_t most = int64_t(kBlocksOfSm) * gpu::multiprocessors();
    if (size * sizeof(A) <= kSharedBytes) {
      shared = size_t(size) * sizeof(A);
    } else {
      most = std::max<int64_t>(1, std::min(most, (int64_t(1) << 26) / size));
    }
    if (kBackward) most = std::max<int64_t>(1, std::min(most, (int64_t(1) << 22) / p.k));
    blocks = unsigned(std::min(most, p.shared ? (all + pixels - 1) / pixels : p.P));
    if (shared > 0) return;
    memory = numbers<A>(blocks * size, like);
    workspace = static_cast<A*>(memory.mutable_data_ptr());
  }
};

Tensor lcdc(const Tensor& input, const Tensor& weight, bool gate) {
  const LcdcParams sizes = check_lcdc(input, weight, gate);
  const OnDevice here(input);
  const Image x(input), out(empty_image(input, input.sizes()));
  if (sizes.N * sizes.P * sizes.C == 0) return out.tensor;
  const Tensor weights = torch::stable::contiguous(weight);
  const Views views = {x.view, out.view};
  const LcdcParams p = sizes.shared ? in_one_line(sizes, views) : sizes;
  with_type(input, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    const T* taps = static_cast<const T*>(weights.const_data_ptr());
    const bool done = specialise<T, false>(p, views, [&](auto k, auto rows, auto joined) {
      constexpr int kTaps = decltype(k)::value, kRows = decltype(rows)::value;
      constexpr bool kJoined = decltype(joined)::value;
      const unsigned blocks = blocks_for("lcdc", p.N * p.P, kWarps * warp_pixels<T, kRows, kJoined>(p));
      gpu::launch(
          "lcdc", forward_packets<T, kTaps, kRows, kJoined>, {blocks, kThreads, 0, here.stream()}, p, x.view, taps,
          out.view);
    });
    if (done) return;
    const RowsCall<T, false> call(p, input);
    gpu::launch(
        "lcdc", through_rows<T, false>, {call.blocks, kThreads, call.shared, here.stream()}, p, call.pixels, x.view,
        x.view, taps, out.view, call.workspace, call.size, static_cast<A*>(nullptr), static_cast<T*>(nullptr));
  });
  return out.tensor;
}

std::tuple<Tensor, Tensor> lcdc_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, bool gate) {
  const LcdcParams sizes = check_lcdc(input, weight, gate);
  check_like("lcdc", "grad_output", grad_output, input, input.sizes());
  const OnDevice here(input);
  const Image grad(grad_output), x(input), grad_input(empty_image(input, input.sizes()));
  Tensor grad_weight = torch::stable::empty(
      weight.sizes(), weight.scalar_type(), std::nullopt, weight.device(), std::nullopt, std::nullopt);
  if (sizes.N * sizes.P * sizes.C == 0) return {grad_input.tensor, torch::stable::zero_(grad_weight)};
  const Tensor weights = torch::stable::contiguous(weight);
  const Views views = {grad.view, x.view, grad_input.view};
  const LcdcParams p = sizes.shared ? in_one_line(sizes, views) : sizes;
  with_type(input, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    const T* taps = static_cast<const T*>(weights.const_data_ptr());
    T* result = static_cast<T*>(grad_weight.mutable_data_ptr());
    Tensor parts;
    unsigned blocks = 0;
    const auto partial = [&] {
      if (!p.shared) return static_cast<A*>(nullptr);
      parts = numbers<A>(blocks * p.k, input);
      return static_cast<A*>(parts.mutable_data_ptr());
    };
    const bool done = specialise<T, true>(p, views, [&](auto k, auto rows, auto joined) {
      constexpr int kTaps = decltype(k)::value, kRows = decltype(rows)::value;
      constexpr bool kJoined = decltype(joined)::value;
      if (p.shared) {
        const int block_pixels = kWarps * warp_pixels<T, kRows, kJoined>(p);
        blocks = std::min(blocks_for("lcdc", p.N * p.P, block_pixels), unsigned(kBlocksOfSm * gpu::multiprocessors()));
        return gpu::launch(
            "lcdc", backward_packets<T, kTaps, kRows, kJoined>, {blocks, kThreads, 0, here.stream()}, p, grad.view,
            x.view, taps, grad_input.view, partial());
      }
      int slices = 1;
      while (slices < kWarps && 2 * slices <= p.N) slices *= 2;
      const int block_positions = kWarps / slices * warp_pixels<T, kRows, kJoined>(p);
      gpu::launch(
          "lcdc", backward_positions<T, kTaps, kRows, kJoined>,
          {blocks_for("lcdc", p.P, block_positions), kThreads, 0, here.stream()}, p, slices, grad.view, x.view, taps,
          grad_input.view, result);
    });
    if (!done) {
      const RowsCall<T, true> call(p, input);
      blocks = call.blocks;
      gpu::launch(
          "lcdc", through_rows<T, true>, {blocks, kThreads, call.shared, here.stream()}, p, call.pixels, grad.view,
          x.view, taps, grad_input.view, call.workspace, call.size, partial(), result);
    }
    if (p.shared)
      gpu::launch(
          "lcdc", sum_parts<T>, {blocks_for("lcdc", p.k, 1), kThreads, 0, here.stream()},
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
