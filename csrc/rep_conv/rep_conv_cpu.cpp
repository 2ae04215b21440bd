// rep_conv on the CPU, the side that torch calls: the choice of a method, memory, threads.
#include <numeric>
#include <optional>
#include <vector>

#include "../common/threads.h"
#include "rep_conv_check.h"
#include "rep_conv_library.h"

namespace danet {
namespace {

bool has_bfloat16_units() {
#if defined(__x86_64__)
  return isa() == Isa::kAvx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// The choice of a method: Winograd where its transforms are repaid by channels, torch's convolution (oneDNN) elsewhere.
bool uses_winograd(ScalarType type, int64_t C, int64_t C_out, int64_t stride) {
  if (stride != 1 || type == ScalarType::Double) return false;
  if (type == ScalarType::BFloat16 && has_bfloat16_units()) return false;
  return C >= 8 && C_out >= 8;
}

// Half types go through float32 where the processor has no units for them.
Tensor convolve(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride, bool relu) {
  const ScalarType type = input.scalar_type();
  const bool widen = type == ScalarType::Half || (type == ScalarType::BFloat16 && !has_bfloat16_units());
  auto widened = [&](const Tensor& t) { return widen ? torch::stable::to(t, ScalarType::Float) : t; };
  std::optional<Tensor> wide_bias;
  if (bias) wide_bias = widened(*bias);
  const Tensor out = call_library(
      torch::stable::contiguous(widened(input), MemoryFormat::ChannelsLast),
      torch::stable::contiguous(widened(weight), MemoryFormat::ChannelsLast), wide_bias, stride, relu);
  return torch::stable::contiguous(widen ? torch::stable::to(out, type) : out, MemoryFormat::ChannelsLast);
}

// [36, panels, C, panel] floats for rep_conv of this type on this processor; empty where it does not use Winograd.
Tensor prepare_rep_conv(const Tensor& weight) {
  DANET_CHECK(
      weight.is_cpu() && weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3,
      "rep_conv: weight must be [C_out, C, 3, 3] on the CPU");
  const RepConvParams p{0, weight.size(1), weight.size(0), 0, 0, false};
  const RepConvKernels& kernels = DANET_KERNELS(rep_conv_kernels, dtype_of(weight));
  if (!uses_winograd(weight.scalar_type(), p.C, p.C_out, 1)) return torch::stable::empty({0}, ScalarType::Float);
  const int64_t panels = (p.C_out + kernels.panel - 1) / kernels.panel;
  const Tensor dense = torch::stable::contiguous(weight);
  Tensor prepared = torch::stable::empty({36, panels, p.C, kernels.panel}, ScalarType::Float);
  parallel_for(panels, p.C * kernels.panel * 100, [&](int64_t begin, int64_t end) {
    kernels.prepare(p, dense.const_data_ptr(), static_cast<float*>(prepared.mutable_data_ptr()), begin, end);
  });
  return prepared;
}

Tensor rep_conv(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& prepared, const std::optional<Tensor>& bias,
    int64_t stride, bool relu, bool) {
  const RepConvParams p = check_rep_conv(input, weight, bias, stride, relu);
  if (!uses_winograd(input.scalar_type(), p.C, p.C_out, stride)) return convolve(input, weight, bias, stride, relu);

  const RepConvKernels& kernels = DANET_KERNELS(rep_conv_kernels, dtype_of(input));
  const int64_t panels = (p.C_out + kernels.panel - 1) / kernels.panel;
  const Tensor transformed = prepared ? *prepared : prepare_rep_conv(weight);
  const int64_t expected[4] = {36, panels, p.C, kernels.panel};
  DANET_CHECK(
      transformed.is_cpu() && transformed.is_contiguous() && transformed.scalar_type() == ScalarType::Float &&
          transformed.dim() == 4 && std::equal(expected, expected + 4, transformed.sizes().begin()),
      "rep_conv: prepared does not fit the weight");
  const Image x(input), out(empty_image(input, {p.N, p.C_out, p.H, p.W}));
  std::optional<Tensor> dense_bias;
  if (bias) dense_bias = torch::stable::contiguous(*bias);

  // Blocks of tiles, all of one size; where they are few, also parts of the panels, to give every thread as much.
  const int64_t tiles = p.N * ((p.H + 3) / 4) * ((p.W + 3) / 4), threads = torch::stable::get_num_threads();
  if (tiles == 0) return out.tensor;
  const int64_t blocks = (tiles + kernels.tiles_at_once(p) - 1) / kernels.tiles_at_once(p);
  const int64_t parts = blocks >= 4 * threads ? 1 : std::min(panels, threads / std::gcd(blocks, threads));
  const int64_t largest = (tiles + blocks - 1) / blocks;
  torch::stable::parallel_for(0, blocks * parts, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(kernels.scratch_size(p, largest));
    for (int64_t unit = begin; unit < end; ++unit) {
      int64_t block = unit / parts, part = unit % parts;
      kernels.forward(
          p, x.view, static_cast<const float*>(transformed.const_data_ptr()),
          dense_bias ? dense_bias->const_data_ptr() : nullptr, out.view, tiles * block / blocks,
          tiles * (block + 1) / blocks, panels * part / parts, panels * (part + 1) / parts, scratch.get());
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
