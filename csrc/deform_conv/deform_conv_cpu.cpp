// The torch operator deform_conv2d on the CPU (deform_conv.h): checks, memory and threads.
#include "deform_conv.h"

#include <optional>

#include "../common/threads.h"
#include "../sdc/sdc_arguments.h"
#include "../sdc/sdc_image.h"

namespace danet {
namespace {

// Bytes of samples per block of pixels in the dense case: half of a small second-level cache.
constexpr int64_t kSampleBytes = 192 * 1024;

// A multiple of 12, the number of rows that the matrix product computes together, and few enough for kSampleBytes.
int64_t block_pixels(int64_t depth) {
  return std::max<int64_t>(12, std::min<int64_t>(96, kSampleBytes / (4 * depth) / 12 * 12));
}

// The weight [C, 1, K] of a depth-wise layer as [K, C].
void transpose(const float* weight, int64_t C, int64_t K, float* packed) {
  for (int64_t k = 0; k < K; ++k)
    for (int64_t c = 0; c < C; ++c) packed[k * C + c] = weight[c * K + k];
}

Tensor deform_conv2d(
    const Tensor& input, const Tensor& offset, const Tensor& mask, const Tensor& weight,
    const std::optional<Tensor>& bias DANET_SDC_PARAMETERS) {
  const SdcParams p = check_call<SdcLayout::kColumns>(input, offset, mask DANET_SDC_ARGUMENTS);
  check_sdc_limits<std::runtime_error>("deform_conv2d", p, p.C);
  DANET_CHECK(input.scalar_type() == ScalarType::Float, "deform_conv2d: input must be float32");
  DANET_CHECK(weight.dim() == 4, "deform_conv2d: weight must have four dimensions");
  const int64_t C_out = weight.size(0);
  const bool is_depthwise = weight.size(1) == 1 && C_out == p.C && p.C > 1;
  check_like("deform_conv2d", "weight", weight, input, {C_out, is_depthwise ? 1 : p.C, kernel_h, kernel_w});
  if (bias) check_like("deform_conv2d", "bias", *bias, input, {C_out});

  // Pack the weight.
  const DeformConvKernels& kernels = DANET_KERNELS(deform_conv_kernels, DType::kFloat);
  const int64_t depth = p.K * p.C;
  const Tensor packed =
      torch::stable::empty({is_depthwise ? depth : kernels.packed_size(C_out, depth)}, ScalarType::Float);
  float* panels = static_cast<float*>(packed.mutable_data_ptr());
  const Tensor dense_weight = torch::stable::contiguous(weight);
  const float* source = static_cast<const float*>(dense_weight.const_data_ptr());
  if (is_depthwise)
    transpose(source, p.C, p.K, panels);
  else
    parallel_for(kernels.panels(C_out), 4 * depth, [&](int64_t begin, int64_t end) {
      kernels.pack(source, C_out, p.C, p.K, panels, begin, end);
    });
  const Tensor dense_bias = bias ? torch::stable::contiguous(*bias) : packed;
  const float* biases = bias ? static_cast<const float*>(dense_bias.const_data_ptr()) : nullptr;

  // Compute blocks of pixels.
  const Image x(compact_image(input, p)), offsets(offset), masks(mask);
  const Image out(empty_image(input, {p.N, C_out, p.H_out, p.W_out}));
  const int64_t pixels = p.H_out * p.W_out, block = is_depthwise ? p.W_out : block_pixels(depth);
  const int64_t blocks = (pixels + block - 1) / block;
  const int64_t cost = block * (4 * p.G * p.K + depth / 2 + (is_depthwise ? 0 : depth * C_out / 16));
  parallel_for(p.N * blocks, cost, [&](int64_t begin, int64_t end) {
    Scratch scratch((is_depthwise ? 1 : block) * depth * int64_t(sizeof(float)));
    float* samples = reinterpret_cast<float*>(scratch.get());
    for (int64_t index = begin; index < end; ++index) {
      const int64_t n = index / blocks, first = index % blocks * block, last = std::min(pixels, first + block);
      if (is_depthwise)
        kernels.depthwise(p, x.view, offsets.view, masks.view, panels, biases, out.view, n, first, last, samples);
      else
        kernels.dense(p, C_out, x.view, offsets.view, masks.view, panels, biases, out.view, n, first, last, samples);
    }
  });
  return out.tensor;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(danet, CPU, library) { library.impl("deform_conv2d", TORCH_BOX(&deform_conv2d)); }

}  // namespace danet
