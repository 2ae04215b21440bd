// The torch operators rep_conv and prepare_rep_conv on CUDA devices: choice of the tile, or of torch's convolution, and
// launches. The kernels are in rep_conv_gemm.cuh.
#include "rep_conv_check.h"
#include "rep_conv_gemm.cuh"
#include "rep_conv_library.h"

namespace danet {
namespace {

//                               kWarpsM, kWarpsN, kMmaM, kMmaN, BLOCK_K_BYTES, kNumStages
using Tile128x128 = GemmTile<2, 4, 4, 4, 64, 4>;
using Tile128x64 = GemmTile<2, 2, 4, 4, 64, 4>;
using Tile64x64 = GemmTile<2, 2, 2, 4, 128, 3>;
using Tile64x32 = GemmTile<2, 2, 2, 2, 128, 3>;
using Tile64x32Unaligned = GemmTile<2, 2, 2, 2, 64, 4>;  // for copies of less than 16 bytes: fewer copies per stage

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls body(tile) with the largest tile that gives every multiprocessor at least two blocks, or Tile64x64 if none
// does. Up to 32 output channels always use Tile64x32. A split weight (RepConvGemm::split_out) needs a tile of 64
// pixels.
template <typename Body>
void with_tile(int64_t pixels, int64_t C_out, bool is_split, Body body) {
  const int64_t min_blocks = 2 * gpu::multiprocessor_count();
  if (C_out <= 32) return body(Tile64x32{});
  if (is_split) return body(Tile64x64{});
  if (C_out > 64 && ceil_div(pixels, 128) * ceil_div(C_out, 128) >= min_blocks) return body(Tile128x128{});
  if (ceil_div(pixels, 128) * ceil_div(C_out, 64) >= min_blocks) return body(Tile128x64{});
  body(Tile64x64{});
}

// Launches rep_conv_gemm. If there are few tiles, splits K so that more multiprocessors get a block. Every split has at
// least four K blocks. The splits of a tile are a cluster if the device has clusters. There, up to three blocks for two
// multiprocessors are predicted to take less time than fewer, longer blocks; elsewhere, more splits would write more
// partial sums.
template <typename T, bool kTensorCores, typename Tile, int kBytes>
void launch_gemm(RepConvGemm<T> p, const Tensor& out, gpu::Stream stream) {
  const int64_t tiles = ceil_div(p.pixels, Tile::BLOCK_M) * ceil_div(p.C_out, Tile::BLOCK_N);
  const int64_t k_blocks = ceil_div(p.taps * p.C * sizeof(T), Tile::BLOCK_K_BYTES);
  const bool is_sm_90 = gpu::has_clusters();
  const int64_t most_blocks = gpu::multiprocessor_count() * (is_sm_90 ? 3 : 2) / 2;
  p.num_splits = int(std::max<int64_t>(1, std::min(most_blocks / tiles, k_blocks / 4)));
  if (!Tile::kCanSplit) p.num_splits = 1;
  const bool has_clusters = p.num_splits > 1 && is_sm_90;
  if (has_clusters) p.num_splits = std::min(p.num_splits, kMaxSplits);
  p.k_blocks = int(k_blocks), p.split_k_blocks = int(k_blocks / p.num_splits);
  p.by_channel_blocks = gpu::Divisor(ceil_div(p.C_out, Tile::BLOCK_N));
  p.by_splits = gpu::Divisor(has_clusters ? p.num_splits : tiles);
  std::optional<Tensor> partial;
  if (p.num_splits > 1 && !has_clusters) {
    const ScalarType type = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
    partial = torch::stable::empty({p.num_splits * p.pixels * p.C_out}, type, std::nullopt, out.device());
    p.partial = static_cast<Compute<T>*>(partial->mutable_data_ptr());
  }
  const unsigned blocks = blocks_for("rep_conv", tiles * p.num_splits, 1);
  gpu::launch(
      "rep_conv", rep_conv_gemm<T, kTensorCores, Tile, kBytes>,
      {blocks, Tile::kNumThreads, Tile::kNumStages * sizeof(typename Tile::Stage), stream,
       has_clusters ? unsigned(p.num_splits) : 1, /*programmatic=*/is_sm_90},
      p);
  const unsigned reduce_blocks = blocks_for("rep_conv", p.pixels * p.C_out, 128);
  if (partial) gpu::launch("rep_conv", rep_conv_reduce_splits<T>, {reduce_blocks, 128, 0, stream}, p);
}

// Whether the addresses of all rows are multiples of `bytes`.
template <typename T>
bool aligned(const RepConvGemm<T>& p, int64_t bytes) {
  return (reinterpret_cast<uintptr_t>(p.input) | reinterpret_cast<uintptr_t>(p.weight)) % bytes == 0 &&
         (p.image_stride | p.pixel_stride | p.C) * int64_t(sizeof(T)) % bytes == 0;
}

template <typename T>
void dispatch_kernel(const RepConvGemm<T>& p, bool tf32, const Tensor& out, gpu::Stream stream) {
  constexpr bool kHalf = sizeof(T) == 2, kDouble = sizeof(T) == 8;
  // The sums of doubles take two registers each: a larger tile would spill some of them.
  using ExactTile = std::conditional_t<kDouble, Tile64x32, Tile64x64>;
  if constexpr (!kHalf)
    if (kDouble || !tf32)
      return aligned(p, 16) ? launch_gemm<T, /*kTensorCores=*/false, ExactTile, 16>(p, out, stream)
                            : launch_gemm<T, /*kTensorCores=*/false, Tile64x32Unaligned, sizeof(T)>(p, out, stream);
  if constexpr (!kDouble) {
    if (aligned(p, 16))
      return with_tile(p.pixels, p.C_out, p.split_out != nullptr, [&](auto tile) {
        launch_gemm<T, /*kTensorCores=*/true, decltype(tile), 16>(p, out, stream);
      });
    if (aligned(p, 4)) return launch_gemm<T, /*kTensorCores=*/true, Tile64x32Unaligned, 4>(p, out, stream);
    launch_gemm<T, /*kTensorCores=*/true, Tile64x32Unaligned, kHalf ? 2 : 4>(p, out, stream);
  }
}

// Whether the offsets in the input and the weight, and the indices of output pixels fit the 32-bit integers of our
// kernels. The offset of a window that ends after the input is less than four times as large as the input.
bool has_small_indices(const RepConvParams& p, const Tensor& input) {
  constexpr int64_t kLimit = 1 << 29;
  int64_t last = 0;
  for (int64_t d = 0; d < 4; ++d) last += (input.size(d) - 1) * input.stride(d);
  // A weight of float32 has two rows for each output channel
  return std::max<int64_t>(last, input.numel()) < kLimit && p.N * p.H * p.W < kLimit && p.C < kLimit / 16 &&
         p.C_out < kLimit / 16 && 2 * p.C_out * p.taps() * p.C < kLimit;
}

// Whether to call torch's convolution (cuDNN) instead: for sizes that overflow the 32-bit indices of our kernels, and
// for a high arithmetic intensity, where it should be faster although bias and ReLU are separate passes. The thresholds
// are an estimate until they are measured.
bool use_torch_convolution(const RepConvParams& p, const Tensor& input, int64_t stride, bool tf32) {
#if defined(DANET_EMULATION)
  return false;
#endif
  if (!has_small_indices(p, input)) return true;
  const double flops =
      2.0 * p.kernel_size * p.kernel_size * p.C * p.C_out * p.N * ceil_div(p.H, stride) * ceil_div(p.W, stride);
  const ScalarType type = input.scalar_type();
  const bool exact = type == ScalarType::Double || (type == ScalarType::Float && !tf32);
  return exact ? p.C >= 16 && flops > 4e9 : p.C >= 128 && p.C_out >= 128 && flops > 2e10;
}

template <typename T>
Tensor run_implicit_gemm(
    const RepConvParams& p, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    int64_t stride, bool tf32, bool is_split, gpu::Stream stream) {
  const int64_t H_out = ceil_div(p.H, stride), W_out = ceil_div(p.W, stride);
  const Tensor out = torch::stable::empty(
      {p.N, p.C_out, H_out, W_out}, is_split ? ScalarType::Float : input.scalar_type(), std::nullopt, input.device(),
      std::nullopt, MemoryFormat::ChannelsLast);
  if (p.N == 0) return out;
  const Image x(input);
  std::optional<Tensor> contiguous_bias;
  if (bias) contiguous_bias = torch::stable::contiguous(*bias);
  RepConvGemm<T> gemm{
      static_cast<const T*>(x.view.data),
      static_cast<const T*>(weight.const_data_ptr()),
      static_cast<const T*>(contiguous_bias ? contiguous_bias->const_data_ptr() : nullptr),
      static_cast<T*>(out.mutable_data_ptr()),
      nullptr,
      int(x.view.image_stride),
      int(x.view.pixel_stride),
      p.N * H_out * W_out,
      int(p.C),
      int(p.C_out),
      int(p.H),
      int(p.W),
      int(H_out),
      int(W_out),
      int(stride),
      int(p.kernel_size * p.kernel_size),
      1,
      p.relu,
      nullptr,
      nullptr,
      gpu::Divisor(H_out * W_out),
      gpu::Divisor(W_out),
      gpu::Divisor(p.C),
      gpu::Divisor(1),  // those of blocks of channels and of splits, and the K blocks, depend on the tile
      gpu::Divisor(1),
      0,
      0};
  if (is_split) {
    gemm.C_out *= 2, gemm.bias = nullptr, gemm.out = nullptr;
    gemm.split_bias = static_cast<const float*>(contiguous_bias ? contiguous_bias->const_data_ptr() : nullptr);
    gemm.split_out = static_cast<float*>(out.mutable_data_ptr());
  }
  dispatch_kernel(gemm, tf32, out, stream);
  return out;
}

// The rows of the GEMM's right operand, [C_out, 3, 3, C] or [C_out, C] in memory. For a float32 weight and an input of
// a half type, they are `prepared`: two rows for each channel, see RepConvGemm::split_out.
Tensor weight_rows_of(
    const RepConvParams& p, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& prepared) {
  if (weight.scalar_type() == input.scalar_type()) return torch::stable::contiguous(weight, MemoryFormat::ChannelsLast);
  DANET_CHECK(prepared, "rep_conv: a float32 weight for an input of 16 bits must be prepared on CUDA");
  check_like("rep_conv", "prepared", *prepared, input, {2 * p.C_out, p.C, p.kernel_size, p.kernel_size});
  return torch::stable::contiguous(*prepared, MemoryFormat::ChannelsLast);
}

Tensor rep_conv(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& prepared, const std::optional<Tensor>& bias,
    int64_t stride, bool relu, bool tf32, std::optional<ScalarType> out_dtype) {
  const RepConvParams p = check_rep_conv(input, weight, bias, stride, relu, /*allows_float32_weight=*/true);
  DANET_CHECK(!out_dtype || *out_dtype == weight.scalar_type(), "rep_conv: out_dtype must be weight's dtype on CUDA");
  const DeviceGuard device_guard(input);
  const bool is_split = weight.scalar_type() != input.scalar_type();
  const Tensor weight_rows = weight_rows_of(p, input, weight, prepared);
  if (is_split)
    DANET_CHECK(
        has_small_indices(p, input),
        "rep_conv: the tensors are too large for a float32 weight with an input of 16 bits on CUDA");
  else if (use_torch_convolution(p, input, stride, tf32))
    return torch::stable::contiguous(
        call_torch_convolution(
            torch::stable::contiguous(input, MemoryFormat::ChannelsLast), weight_rows, bias, stride, relu),
        MemoryFormat::ChannelsLast);
  Tensor out;
  with_type(input, [&](auto type) {
    out = run_implicit_gemm<decltype(type)>(p, input, weight_rows, bias, stride, tf32, is_split, device_guard.stream());
  });
  return out;
}

// The CUDA kernels read the weight in its own layout: there is nothing to prepare.
Tensor prepare_rep_conv(const Tensor& weight, int64_t /* stride */, std::optional<ScalarType> /* input_dtype */) {
  return torch::stable::empty({0}, weight.scalar_type(), std::nullopt, weight.device());
}

}  // namespace

DANET_CUDA_LIBRARY(library) {
  library.impl("rep_conv", TORCH_BOX(&rep_conv));
  library.impl("prepare_rep_conv", TORCH_BOX(&prepare_rep_conv));
}

}  // namespace danet
