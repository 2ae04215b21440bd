// The torch operator deform_conv2d on the CPU (deform_conv.h): checks, memory and threads.
#include "deform_conv.h"

#include <optional>

#include "../common/threads.h"
#include "../sdc/sdc_arguments.h"
#include "../sdc/sdc_image.h"

namespace danet {
namespace {

// Bytes of samples per block of pixels in the dense case: they fit into a second-level cache of 1 MiB or more.
constexpr int64_t kSampleBytes = 768 * 1024;
// Pixels per block: enough to use a part of the weight often while it is in the first-level cache.
constexpr int64_t kMinPixels = 48, kMaxPixels = 96;

// The weight is packed if there are more pixels than this times C_out: packing takes as long as the product of about 40
// pixels, but reading the weight in place is slower for every block of pixels.
constexpr double kFewPixels = 0.5;

// The number of pixels per block, a multiple of 16. All threads get the same number of blocks if there are few. A
// weight in place is larger than all samples, and every block reads it: then the blocks are as large as possible.
int64_t block_pixels(int64_t N, int64_t pixels, int64_t row_size, bool is_packed) {
  const int64_t most =
      is_packed ? std::max(kMinPixels, std::min(kMaxPixels, kSampleBytes / (4 * row_size))) : kMaxPixels;
  const int64_t threads = torch::stable::get_num_threads();
  int64_t blocks = std::max<int64_t>(1, (pixels + most - 1) / most);
  if (N > 0 && N * blocks < 8 * threads) blocks = ((N * blocks + threads - 1) / threads * threads + N - 1) / N;
  return std::max<int64_t>(16, ((pixels + blocks - 1) / blocks + 15) / 16 * 16);
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
  const int64_t group_channels = weight.size(1), weight_groups = group_channels > 0 ? p.C / group_channels : 0;
  DANET_CHECK(
      weight_groups > 0 && weight_groups * group_channels == p.C && C_out % weight_groups == 0,
      "deform_conv2d: the number of weight groups must divide the channels of input and of the output");
  const bool is_depthwise = group_channels == 1 && C_out == p.C && p.C > 1;
  check_like("deform_conv2d", "weight", weight, input, {C_out, group_channels, kernel_h, kernel_w});
  if (bias) check_like("deform_conv2d", "bias", *bias, input, {C_out});

  // Pack the weight of each group, unless it is used in place.
  const DeformConvKernels& kernels = DANET_KERNELS(deform_conv_kernels, DType::kFloat);
  const int64_t depth = p.K * p.C, pixels = p.H_out * p.W_out;
  const int64_t group_depth = depth / weight_groups, group_out = C_out / weight_groups;
  const bool is_packed = weight_groups > 1 || double(p.N * pixels) > kFewPixels * double(C_out);
  const int64_t group_size = kernels.packed_size(group_out, group_depth);
  const int64_t packed_size = is_depthwise ? depth : is_packed ? weight_groups * group_size : 0;
  const Scratch packed(packed_size * int64_t(sizeof(float)));
  float* panels = reinterpret_cast<float*>(packed.get());
  const Tensor dense_weight = torch::stable::contiguous(weight);
  const float* source = static_cast<const float*>(dense_weight.const_data_ptr());
  if (is_depthwise)
    transpose(source, p.C, p.K, panels);
  else if (is_packed)
    for (int64_t group = 0; group < weight_groups; ++group)
      parallel_for(kernels.panels(group_out), 4 * group_depth, [&](int64_t begin, int64_t end) {
        kernels.pack(
            source + group * group_out * group_depth, group_out, group_channels, p.K, panels + group * group_size,
            begin, end);
      });
  const Tensor dense_bias = bias ? torch::stable::contiguous(*bias) : dense_weight;
  const float* biases = bias ? static_cast<const float*>(dense_bias.const_data_ptr()) : nullptr;

  // Compute blocks of pixels.
  const Image x(compact_image(input, p)), offsets(offset), masks(mask);
  const Image out(empty_image(input, {p.N, C_out, p.H_out, p.W_out}));
  const int64_t row_size = depth + (weight_groups > 1 ? group_depth : 0);  // samples of a pixel, and those of one group
  const int64_t block = is_depthwise ? p.W_out : block_pixels(p.N, pixels, row_size, is_packed);
  const int64_t blocks = (pixels + block - 1) / block;
  const int64_t scratch_size = is_depthwise ? depth
                               : is_packed  ? block * row_size
                                            : kernels.few_pixels_scratch(C_out, depth, block);
  const int64_t cost = block * (4 * p.G * p.K + depth / 2 + (is_depthwise ? 0 : group_depth * C_out / 16));
  parallel_for(p.N * blocks, cost, [&](int64_t begin, int64_t end) {
    Scratch scratch(scratch_size * int64_t(sizeof(float)));
    float* samples = reinterpret_cast<float*>(scratch.get());
    for (int64_t index = begin; index < end; ++index) {
      const int64_t n = index / blocks, first = index % blocks * block, last = std::min(pixels, first + block);
      if (is_depthwise)
        kernels.depthwise(p, x.view, offsets.view, masks.view, panels, biases, out.view, n, first, last, samples);
      else if (is_packed)
        kernels.dense(
            p, C_out, weight_groups, x.view, offsets.view, masks.view, panels, biases, out.view, n, first, last,
            samples);
      else
        kernels.few_pixels(
            p, C_out, x.view, offsets.view, masks.view, source, biases, out.view, n, first, last, samples);
    }
  });
  return out.tensor;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(danet, CPU, library) { library.impl("deform_conv2d", TORCH_BOX(&deform_conv2d)); }

}  // namespace danet
