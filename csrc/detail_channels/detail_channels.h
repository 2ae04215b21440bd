// Input channels that show the small details of an image, or of its difference to an earlier frame, in units of their
// local deviation. With values v = image - past (or v = image without an earlier frame):
//
//   d = (v smoothed by a small separable filter) - (mean of v over a square with sides of detail_size pixels)
//   s = sqrt(mean of d^2 over a square with sides of neighborhood_size pixels)
//   result = units * d / (s + min_deviation + |d| * units / limit)
//
// At the border, images continue mirrored about their outermost pixels, which are not repeated.
#pragma once

#include <cstdint>

#include "../common/kernels.h"

namespace danet {

constexpr int64_t kMaxDetailSize = 255;  // of all filters and squares, in pixels

struct DetailParams {
  int64_t H, W;
  const float* smoothing;                                        // [2 * smoothing_radius + 1], symmetric
  int64_t smoothing_radius, detail_radius, neighborhood_radius;  // the sides of a square have 2 * radius + 1 pixels
  float units, limit, min_deviation;
};

// `scratch` has scratch_size bytes. Results do not depend on how the rows are divided between threads.
struct DetailKernels {
  int64_t (*scratch_size)(const DetailParams&);
  // Computes the rows [begin, end) of out [H, W] from image and past [H, W]; past may be null.
  void (*of_uint8)(
      const DetailParams&, const uint8_t* image, const uint8_t* past, float* out, int64_t begin, int64_t end,
      char* scratch);
  void (*of_uint16)(
      const DetailParams&, const uint16_t* image, const uint16_t* past, float* out, int64_t begin, int64_t end,
      char* scratch);
  // What `count` channels share: out[i] for i in [begin, end) is the value nearest to zero where all of them have the
  // same sign, and 0 elsewhere.
  void (*common)(const float* const* channels, int64_t count, float* out, int64_t begin, int64_t end);
};

DANET_DECLARE_KERNELS(DetailKernels, detail_channels_kernels)

}  // namespace danet
