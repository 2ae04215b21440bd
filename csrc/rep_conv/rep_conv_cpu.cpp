// The torch operators rep_conv and prepare_rep_conv on the CPU: choice of the algorithm, memory and threads.
#include <numeric>
#include <optional>
#include <vector>

#include "../common/threads.h"
#include "rep_conv_check.h"
#include "rep_conv_library.h"

namespace danet {
namespace {

bool has_avx512_bf16() {
#if defined(__x86_64__)
  return isa() == Isa::kAvx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

enum class RepConvMethod { kTiles, kWinograd, kFewOutputs, kFewInputs, kTorch };

// Chooses the algorithm. If there is a matrix unit, it computes bfloat16 layers with at least kFewChannels input and
// output channels; smaller ones are computed as in float32. torch's convolution (oneDNN) computes float64, bfloat16 on
// processors without a matrix unit that have instructions for it, and layers with few output channels at stride 2.
// Winograd computes layers with enough channels to amortize its transforms.
RepConvMethod choose_method(ScalarType type, int64_t C, int64_t C_out, int64_t stride) {
  const bool has_tiles = type == ScalarType::BFloat16 && matrix_unit() != MatrixUnit::kNone;
  if (has_tiles && C >= kFewChannels && C_out >= kFewChannels) return RepConvMethod::kTiles;
  if (type == ScalarType::Double || (type == ScalarType::BFloat16 && !has_tiles && has_avx512_bf16()))
    return RepConvMethod::kTorch;
  if (C < kFewChannels) return RepConvMethod::kFewInputs;
  if (C_out < kFewChannels && stride != 1) return RepConvMethod::kTorch;
  if (C_out < kFewChannels) return C <= kFewOutputsMaxChannels ? RepConvMethod::kFewOutputs : RepConvMethod::kTorch;
  return RepConvMethod::kWinograd;
}

// torch's convolution. Half types are converted to float32 if the processor has no instructions for them.
Tensor convolve_with_torch(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride, bool relu) {
  const ScalarType type = input.scalar_type();
  const bool is_converted = type == ScalarType::Half || (type == ScalarType::BFloat16 && !has_avx512_bf16());
  auto to_float32 = [&](const Tensor& t) { return is_converted ? torch::stable::to(t, ScalarType::Float) : t; };
  std::optional<Tensor> float32_bias;
  if (bias) float32_bias = to_float32(*bias);
  const Tensor out = call_torch_convolution(
      torch::stable::contiguous(to_float32(input), MemoryFormat::ChannelsLast),
      torch::stable::contiguous(to_float32(weight), MemoryFormat::ChannelsLast), float32_bias, stride, relu);
  return torch::stable::contiguous(is_converted ? torch::stable::to(out, type) : out, MemoryFormat::ChannelsLast);
}

// The sizes of the prepared weight (layouts: rep_conv.h). Never four-dimensional:
// Module.to(memory_format=channels_last) would reorder such a tensor.
std::vector<int64_t> prepared_sizes(const RepConvKernels& kernels, const RepConvParams& p, RepConvMethod method) {
  const int64_t panels = (p.C_out + kernels.panel - 1) / kernels.panel;
  switch (method) {
    case RepConvMethod::kTiles: return {DANET_TILE_KERNELS(rep_conv_tile_kernels).prepared_size(p)};
    case RepConvMethod::kWinograd: return {panels, 9, p.C * kernels.panel};
    case RepConvMethod::kFewOutputs: return {p.C_out, 9, p.C};
    case RepConvMethod::kFewInputs: return {panels, 9, p.C * kernels.panel};
    default: return {0};
  }
}

ScalarType prepared_type(RepConvMethod method) {
  return method == RepConvMethod::kTiles ? ScalarType::BFloat16 : ScalarType::Float;
}

// Lays the weight out as rep_conv reads it for this dtype and stride on this processor. Returns an empty tensor if
// rep_conv reads the weight itself.
Tensor prepare_rep_conv(const Tensor& weight, int64_t stride) {
  DANET_CHECK(
      weight.is_cpu() && weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3,
      "rep_conv: weight must be [C_out, C, 3, 3] on the CPU");
  const RepConvParams p{0, weight.size(1), weight.size(0), 0, 0, false, stride};
  const RepConvKernels& kernels = DANET_KERNELS(rep_conv_kernels, dtype_of(weight));
  const RepConvMethod method = choose_method(weight.scalar_type(), p.C, p.C_out, stride);
  const Tensor prepared = torch::stable::empty(prepared_sizes(kernels, p, method), prepared_type(method));
  if (method == RepConvMethod::kTorch) return prepared;
  if (method == RepConvMethod::kTiles) {
    const Tensor dense = torch::stable::contiguous(weight);
    DANET_TILE_KERNELS(rep_conv_tile_kernels)
        .prepare(
            p, static_cast<const BFloat16*>(dense.const_data_ptr()),
            static_cast<BFloat16*>(prepared.mutable_data_ptr()));
    return prepared;
  }
  float* to = static_cast<float*>(prepared.mutable_data_ptr());
  const Tensor float32_weight = torch::stable::contiguous(torch::stable::to(weight, ScalarType::Float));
  const float* w = static_cast<const float*>(float32_weight.const_data_ptr());
  const auto value = [&](int64_t o, int64_t k, int64_t c) { return o < p.C_out ? w[(o * p.C + c) * 9 + k] : 0; };
  const int64_t lanes = method == RepConvMethod::kFewOutputs ? 1 : kernels.panel;
  for (int64_t o = 0; o < (p.C_out + lanes - 1) / lanes * lanes; ++o)
    for (int64_t k = 0; k < 9; ++k)
      for (int64_t c = 0; c < p.C; ++c) to[((o / lanes * 9 + k) * p.C + c) * lanes + o % lanes] = value(o, k, c);
  return prepared;
}

// The convolution on the matrix unit. Blocks of output rows are divided over the threads, and panels of output channels
// too if an image has few pixels.
void convolve_with_tiles(
    const RepConvParams& p, const ImageView& input, const Tensor& prepared, const BFloat16* bias,
    const ImageView& out) {
  const RepConvTileKernels& kernels = DANET_TILE_KERNELS(rep_conv_tile_kernels);
  const BFloat16* weights = static_cast<const BFloat16*>(prepared.const_data_ptr());
  const int64_t H = p.H_out(), threads = torch::stable::get_num_threads(), panels = kernels.panels(p);
  if (p.N == 0 || H == 0 || p.W_out() == 0) return;
  // A thread's copy of the input should leave half of an L2 cache of 2 MiB for the weights.
  constexpr int64_t kBlockBytes = 1 << 20;
  const int64_t rows_per_block = std::max<int64_t>(1, H * kBlockBytes / kernels.scratch_size(p, H));
  int64_t blocks = (H + rows_per_block - 1) / rows_per_block, parts = 1;
  if (p.N * blocks < 4 * threads) {
    if (H * p.W_out() < 512)
      parts = std::min(panels, threads / std::gcd(p.N * blocks, threads));
    else
      blocks = std::min(H, (blocks + threads - 1) / threads * threads);
  }
  const int64_t largest = (H + blocks - 1) / blocks;
  torch::stable::parallel_for(0, p.N * blocks * parts, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(kernels.scratch_size(p, largest));
    for (int64_t work_index = begin; work_index < end; ++work_index) {
      const int64_t part = work_index % parts, block = work_index / parts % blocks, n = work_index / parts / blocks;
      kernels.forward(
          p, input, weights, bias, out, n, H * block / blocks, H * (block + 1) / blocks, panels * part / parts,
          panels * (part + 1) / parts, scratch.get());
    }
  });
}

Tensor rep_conv(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& prepared, const std::optional<Tensor>& bias,
    int64_t stride, bool relu, bool /* tf32 */) {
  const RepConvParams p = check_rep_conv(input, weight, bias, stride, relu);
  const RepConvMethod method = choose_method(input.scalar_type(), p.C, p.C_out, stride);
  // NOTE: a weight that is not prepared must be laid out in every call. At stride 2 that costs more than Winograd
  // saves.
  const bool is_unprepared = !prepared && stride == 2 && method == RepConvMethod::kWinograd;
  if (is_unprepared || method == RepConvMethod::kTorch) return convolve_with_torch(input, weight, bias, stride, relu);

  const RepConvKernels& kernels = DANET_KERNELS(rep_conv_kernels, dtype_of(input));
  const Tensor packed = prepared ? *prepared : prepare_rep_conv(weight, stride);
  const std::vector<int64_t> expected = prepared_sizes(kernels, p, method);
  DANET_CHECK(
      packed.is_cpu() && packed.is_contiguous() && packed.scalar_type() == prepared_type(method) &&
          packed.dim() == int64_t(expected.size()) &&
          std::equal(expected.begin(), expected.end(), packed.sizes().begin()),
      "rep_conv: prepared does not match the weight and stride");
  const Image x(input), out(empty_image(input, {p.N, p.C_out, p.H_out(), p.W_out()}));
  std::optional<Tensor> contiguous_bias;
  if (bias) contiguous_bias = torch::stable::contiguous(*bias);
  const void* b = contiguous_bias ? contiguous_bias->const_data_ptr() : nullptr;
  if (method == RepConvMethod::kTiles) {
    convolve_with_tiles(p, x.view, packed, static_cast<const BFloat16*>(b), out.view);
    return out.tensor;
  }
  const float* weights = static_cast<const float*>(packed.const_data_ptr());
  if (method == RepConvMethod::kFewOutputs) {
    parallel_for(p.N * p.H, p.W * p.C * p.C_out, [&](int64_t begin, int64_t end) {
      kernels.few_outputs(p, x.view, weights, b, out.view, begin, end);
    });
    return out.tensor;
  }
  if (method == RepConvMethod::kFewInputs) {
    parallel_for(p.N * p.H_out(), p.W_out() * p.C * p.C_out, [&](int64_t begin, int64_t end) {
      kernels.few_inputs(p, x.view, weights, b, out.view, begin, end);
    });
    return out.tensor;
  }

  // Divide the tiles into blocks of nearly equal size. If there are few blocks, balance them over the threads: split
  // the panels of output channels if transforming the weights dominates (each block repeats that work), else use more,
  // smaller blocks.
  const WinogradKernels& winograd = kernels.winograd[stride - 1];
  const int64_t tiles = p.N * ((p.H_out() + 3) / 4) * ((p.W_out() + 3) / 4);
  const int64_t threads = torch::stable::get_num_threads();
  if (tiles == 0) return out.tensor;
  const int64_t panels = expected[0];
  int64_t blocks = (tiles + winograd.tiles_per_block(p) - 1) / winograd.tiles_per_block(p), parts = 1;
  if (blocks < 4 * threads) {
    if (panels * 10 > tiles)
      parts = std::min(panels, threads / std::gcd(blocks, threads));
    else
      blocks = std::min(tiles, (blocks + threads - 1) / threads * threads);
  }
  const int64_t largest = (tiles + blocks - 1) / blocks;
  torch::stable::parallel_for(0, blocks * parts, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(winograd.scratch_size(p, largest));
    for (int64_t work_index = begin; work_index < end; ++work_index) {
      int64_t block = work_index / parts, part = work_index % parts;
      winograd.forward(
          p, x.view, weights, b, out.view, tiles * block / blocks, tiles * (block + 1) / blocks, panels * part / parts,
          panels * (part + 1) / parts, scratch.get());
    }
  });
  return out.tensor;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(danet, CPU, library) {
  library.impl("rep_conv", TORCH_BOX(&rep_conv));
  library.impl("prepare_rep_conv", TORCH_BOX(&prepare_rep_conv));
}

}  // namespace danet
