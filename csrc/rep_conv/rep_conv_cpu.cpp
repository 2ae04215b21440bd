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

enum class Method { kWinograd, kFewOutputs, kFewInputs, kLibrary };

// The choice of a method: Winograd where its transforms are repaid by channels, torch's convolution (oneDNN) for wide
// layers of stride 2, float64, and bfloat16 where the processor has units for it.
Method method_of(ScalarType type, int64_t C, int64_t C_out, int64_t stride) {
  if (type == ScalarType::Double || (type == ScalarType::BFloat16 && has_bfloat16_units())) return Method::kLibrary;
  if (C < kFew) return Method::kFewInputs;
  if (C_out < kFew && stride != 1) return Method::kLibrary;
  if (C_out < kFew) return C <= kFewChannels ? Method::kFewOutputs : Method::kLibrary;
  return Method::kWinograd;
}

// Half types go through float32 where the processor has no units for them.
Tensor convolve(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride, bool relu) {
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

// The sizes of the prepared weight (see rep_conv.h); never four, which a module moved to channels-last would reorder.
std::vector<int64_t> prepared_sizes(const RepConvKernels& kernels, const RepConvParams& p, Method method) {
  const int64_t panels = (p.C_out + kernels.panel - 1) / kernels.panel;
  switch (method) {
    case Method::kWinograd: return {panels, 9, p.C * kernels.panel};
    case Method::kFewOutputs: return {p.C_out, 9, p.C};
    case Method::kFewInputs: return {panels, 9, p.C * kernels.panel};
    default: return {0};
  }
}

// The weight as rep_conv of this type and stride reads it on this processor; empty where that is the weight itself.
Tensor prepare_rep_conv(const Tensor& weight, int64_t stride) {
  DANET_CHECK(
      weight.is_cpu() && weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3,
      "rep_conv: weight must be [C_out, C, 3, 3] on the CPU");
  const RepConvParams p{0, weight.size(1), weight.size(0), 0, 0, false, stride};
  const RepConvKernels& kernels = DANET_KERNELS(rep_conv_kernels, dtype_of(weight));
  const Method method = method_of(weight.scalar_type(), p.C, p.C_out, stride);
  const Tensor prepared = torch::stable::empty(prepared_sizes(kernels, p, method), ScalarType::Float);
  if (method == Method::kLibrary) return prepared;
  float* to = static_cast<float*>(prepared.mutable_data_ptr());
  const Tensor wide = torch::stable::contiguous(torch::stable::to(weight, ScalarType::Float));
  const float* w = static_cast<const float*>(wide.const_data_ptr());
  const auto value = [&](int64_t o, int64_t k, int64_t c) { return o < p.C_out ? w[(o * p.C + c) * 9 + k] : 0; };
  const int64_t lanes = method == Method::kFewOutputs ? 1 : kernels.panel;
  for (int64_t o = 0; o < (p.C_out + lanes - 1) / lanes * lanes; ++o)
    for (int64_t k = 0; k < 9; ++k)
      for (int64_t c = 0; c < p.C; ++c) to[((o / lanes * 9 + k) * p.C + c) * lanes + o % lanes] = value(o, k, c);
  return prepared;
}

Tensor rep_conv(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& prepared, const std::optional<Tensor>& bias,
    int64_t stride, bool relu, bool) {
  const RepConvParams p = check_rep_conv(input, weight, bias, stride, relu);
  const Method method = method_of(input.scalar_type(), p.C, p.C_out, stride);
  // A weight that comes as it is would be laid out at every call; at stride 2 that costs more than it saves.
  const bool raw = !prepared && stride == 2 && method == Method::kWinograd;
  if (raw || method == Method::kLibrary) return convolve(input, weight, bias, stride, relu);

  const RepConvKernels& kernels = DANET_KERNELS(rep_conv_kernels, dtype_of(input));
  const Tensor transformed = prepared ? *prepared : prepare_rep_conv(weight, stride);
  const std::vector<int64_t> expected = prepared_sizes(kernels, p, method);
  DANET_CHECK(
      transformed.is_cpu() && transformed.is_contiguous() && transformed.scalar_type() == ScalarType::Float &&
          transformed.dim() == int64_t(expected.size()) &&
          std::equal(expected.begin(), expected.end(), transformed.sizes().begin()),
      "rep_conv: prepared does not fit the weight");
  const float* weights = static_cast<const float*>(transformed.const_data_ptr());
  const Image x(input), out(empty_image(input, {p.N, p.C_out, p.H_out(), p.W_out()}));
  std::optional<Tensor> dense_bias;
  if (bias) dense_bias = torch::stable::contiguous(*bias);
  const void* b = dense_bias ? dense_bias->const_data_ptr() : nullptr;
  if (method == Method::kFewOutputs) {
    parallel_for(p.N * p.H, p.W * p.C * p.C_out, [&](int64_t begin, int64_t end) {
      kernels.few_outputs(p, x.view, weights, b, out.view, begin, end);
    });
    return out.tensor;
  }
  if (method == Method::kFewInputs) {
    parallel_for(p.N * p.H_out(), p.W_out() * p.C * p.C_out, [&](int64_t begin, int64_t end) {
      kernels.few_inputs(p, x.view, weights, b, out.view, begin, end);
    });
    return out.tensor;
  }

  // Blocks of tiles, all of one size. Where they are few, every thread gets as much: of the tiles, or, where transforming
  // the weights again costs more than the tiles, of the panels.
  const WinogradKernels& winograd = kernels.winograd[stride - 1];
  const int64_t tiles = p.N * ((p.H_out() + 3) / 4) * ((p.W_out() + 3) / 4);
  const int64_t threads = torch::stable::get_num_threads();
  if (tiles == 0) return out.tensor;
  const int64_t panels = expected[0];
  int64_t blocks = (tiles + winograd.tiles_at_once(p) - 1) / winograd.tiles_at_once(p), parts = 1;
  if (blocks < 4 * threads) {
    if (panels * 10 > tiles)
      parts = std::min(panels, threads / std::gcd(blocks, threads));
    else
      blocks = std::min(tiles, (blocks + threads - 1) / threads * threads);
  }
  const int64_t largest = (tiles + blocks - 1) / blocks;
  torch::stable::parallel_for(0, blocks * parts, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(winograd.scratch_size(p, largest));
    for (int64_t unit = begin; unit < end; ++unit) {
      int64_t block = unit / parts, part = unit % parts;
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
