// The torch operator detail_channels on the CPU: argument checks, memory and threads.
#include <vector>

#include "../common/threads.h"
#include "detail_channels.h"

namespace danet {
namespace {

constexpr int64_t kMaxSide = 1 << 20;

int64_t radius_of(int64_t size, const char* name) {
  DANET_CHECK(
      size >= 1 && size <= kMaxDetailSize && size % 2 == 1, "detail_channels: ", name, " must be odd, from 1 to ",
      kMaxDetailSize, ", got ", size);
  return size / 2;
}

// Elementary operations per pixel and channel, for the division into threads.
constexpr int64_t kCostPerPixel = 8;

Tensor detail_channels(
    const Tensor& image, std::vector<Tensor> past, std::vector<double> smoothing, int64_t detail_size,
    int64_t neighborhood_size, double units, double limit, double min_deviation, bool with_image) {
  const bool is_uint8 = image.scalar_type() == ScalarType::Byte;
  DANET_CHECK(
      image.is_cpu() && image.dim() == 2 && (is_uint8 || image.scalar_type() == ScalarType::UInt16) &&
          image.numel() > 0,
      "detail_channels: image must be [H, W], uint8 or uint16, on the CPU");
  const int64_t H = image.size(0), W = image.size(1), lags = int64_t(past.size());
  DANET_CHECK(
      H <= kMaxSide && W <= kMaxSide, "detail_channels: image must have at most ", kMaxSide, " rows and columns, got ",
      H, " x ", W);
  DANET_CHECK(
      units > 0 && limit > 0 && min_deviation > 0, "detail_channels: units, limit and min_deviation must be positive");
  const std::vector<float> weights(smoothing.begin(), smoothing.end());
  const DetailParams p{
      H,
      W,
      weights.data(),
      radius_of(int64_t(weights.size()), "the number of weights of smoothing"),
      radius_of(detail_size, "detail_size"),
      radius_of(neighborhood_size, "neighborhood_size"),
      float(units),
      float(limit),
      float(min_deviation)};

  // The sources of the channels: null for one without an earlier frame, whose channel is zero
  const Tensor pixels = torch::stable::contiguous(image);
  std::vector<Tensor> frames;
  for (const Tensor& frame : past) {
    DANET_CHECK(
        frame.numel() == 0 || (frame.is_cpu() && frame.dim() == 2 && frame.size(0) == H && frame.size(1) == W &&
                               frame.scalar_type() == image.scalar_type()),
        "detail_channels: an earlier frame must be like the image, or empty");
    frames.push_back(torch::stable::contiguous(frame));
  }
  const int64_t first = with_image ? 1 : 0, channels = first + lags + (lags > 1 ? 1 : 0);
  const Tensor out = torch::stable::empty({channels, H, W}, ScalarType::Float, std::nullopt, image.device());
  if (channels == 0) return out;
  float* const data = static_cast<float*>(const_cast<void*>(out.const_data_ptr()));
  std::vector<const float*> known;  // the channels of earlier frames
  for (int64_t i = 0; i < lags; ++i)
    if (frames[size_t(i)].numel() > 0) known.push_back(data + (first + i) * H * W);

  const DetailKernels& kernels = DANET_KERNELS(detail_channels_kernels, DType::kFloat);
  // Every thread computes more rows above and below its own. Divide the image into blocks of twice as many rows at least.
  const int64_t halo = p.neighborhood_radius + std::max(p.detail_radius, p.smoothing_radius), rows = 4 * halo + 1;
  parallel_for(
      (H + rows - 1) / rows, rows * W * channels * kCostPerPixel, [&](int64_t first_block, int64_t last_block) {
        const int64_t begin = first_block * rows, end = std::min(last_block * rows, H);
        Scratch scratch(kernels.scratch_size(p));
        const auto compute = [&](const void* frame, float* channel) {
          const void* const image_data = pixels.const_data_ptr();
          if (is_uint8)
            kernels.of_uint8(
                p, static_cast<const uint8_t*>(image_data), static_cast<const uint8_t*>(frame), channel, begin, end,
                scratch.get());
          else
            kernels.of_uint16(
                p, static_cast<const uint16_t*>(image_data), static_cast<const uint16_t*>(frame), channel, begin, end,
                scratch.get());
        };
        const auto clear = [&](float* channel) { std::fill(channel + begin * W, channel + end * W, 0.0f); };
        if (with_image) compute(nullptr, data);
        for (int64_t i = 0; i < lags; ++i) {
          float* const channel = data + (first + i) * H * W;
          frames[size_t(i)].numel() > 0 ? compute(frames[size_t(i)].const_data_ptr(), channel) : clear(channel);
        }
        if (lags <= 1) return;
        float* const shared = data + (channels - 1) * H * W;
        if (known.empty()) return clear(shared);
        kernels.common(known.data(), int64_t(known.size()), shared, begin * W, end * W);
      });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(danet, CPU, library) { library.impl("detail_channels", TORCH_BOX(&detail_channels)); }

}  // namespace danet
