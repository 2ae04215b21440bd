// rep_conv, the re-parameterized 3x3 convolution of RepVGG (https://arxiv.org/abs/2101.03697): padding 1, bias and an
// optional ReLU in one pass.
//
//   out[n, o, y, x] = relu(bias[o] + sum_{c, i, j < 3} weight[o, c, i, j] * input[n, c, y*s - 1 + i, x*s - 1 + j])
//
// with stride s = 1 or 2, and zeros outside the input. Kernels of 1x1, which have no padding and stride 1, are computed
// on the matrix unit, or else by torch.
//
// In bfloat16 on processors with a matrix unit, the CPU computes this sum directly (rep_conv_tiles.cpp), except for
// layers with fewer than kFewChannels input or output channels. There, it also computes the first layer of a network,
// from float32 to bfloat16, if that has fewer than kFewChannels input channels (rep_conv_stem.h). With AVX512_BF16 in
// place of a matrix unit, it computes some layers directly (choose_method in rep_conv_cpu.cpp). Otherwise it mostly
// uses Winograd's algorithm (Lavin and Gray, https://arxiv.org/abs/1509.09308): it computes an output tile of 4x4
// pixels from an input tile d of 6x6 pixels (9x9 at stride 2):
//
//   A^T [ sum_c (G w G^T) * (B^T d B) ] A,   w: the 3x3 weight, *: elementwise
//
// That needs 36 multiplications (81 at stride 2) per 16 outputs and channel instead of 144. At stride 2, one element of
// the 6x6 matrix G w G^T is used for several of the 81 elements of B^T d B (weight_index in rep_conv_winograd.h).
#pragma once

#include <cstdint>

#include "../common/kernels.h"
#include "../common/types.h"

namespace danet {

struct RepConvParams {
  int64_t N, C, C_out, H, W;
  bool relu;
  int64_t stride;
  int64_t kernel_size = 3;  // or 1
  // On the matrix unit: the weight is float32, and each of its values is multiplied as the sum of two bfloat16 values,
  // of which one may be zero, so that an infinite input gives NaN. Bias and result are float32.
  bool has_float32_weight = false;
  // On the matrix unit: memory that is needed after this call, such as the next layer's weight. The kernel loads up to
  // a part of it into the L2 cache meanwhile. May be null.
  const void* next_weight = nullptr;
  int64_t next_bytes = 0;

  int64_t taps() const { return kernel_size * kernel_size; }
  int64_t H_out() const { return (H - 1) / stride + 1; }
  int64_t W_out() const { return (W - 1) / stride + 1; }
};

// Special kernels compute layers with fewer than kFewChannels input channels, and layers with fewer than kFewChannels
// output channels at stride 1. The few_outputs kernel supports up to kFewOutputsMaxChannels input channels: that is the
// size of its pixel of zeros, which it reads for pixels outside the image.
constexpr int64_t kFewChannels = 8, kFewOutputsMaxChannels = 4096;

// Winograd's convolution for one stride. Tiles of 4x4 outputs are numbered row by row, image by image.
struct WinogradKernels {
  // The number of tiles per block: as many as fit into the L2 cache, but at least 24 and at most 96.
  int64_t (*tiles_per_block)(const RepConvParams&);
  // Bytes of scratch memory that `forward` needs for this number of tiles.
  int64_t (*scratch_size)(const RepConvParams&, int64_t tiles);
  // Computes the tiles [begin, end) and the panels [first, last) of output channels. prepared: the weight as panels
  // [ceil(C_out / panel), 9 * C, panel], with zeros beyond C_out; bias [C_out] or null.
  void (*forward)(
      const RepConvParams&, ImageView input, const float* prepared, const void* bias, ImageView out, int64_t begin,
      int64_t end, int64_t first, int64_t last, char* scratch);
};

// The CPU kernels of one dtype.
struct RepConvKernels {
  int64_t panel;                // output channels per panel
  WinogradKernels winograd[2];  // for stride 1 and 2
  // For fewer than kFewChannels output channels, stride 1: the dot product of each pixel's window with each filter.
  // prepared: [C_out, 9, C]. Computes the output rows n * H + y in [begin, end).
  void (*few_outputs)(
      const RepConvParams&, ImageView input, const float* prepared, const void* bias, ImageView out, int64_t begin,
      int64_t end);
  // The size of the scratch memory of few_inputs, in values.
  int64_t (*few_inputs_scratch)(const RepConvParams&);
  // For fewer than kFewChannels input channels, any stride: a matrix product whose rows are the windows. prepared:
  // panels [ceil(C_out / panel), 9 * C, panel]. Computes the output rows n * H_out + y in [begin, end).
  void (*few_inputs)(
      const RepConvParams&, ImageView input, const float* prepared, const void* bias, ImageView out, int64_t begin,
      int64_t end, float* scratch);
};

DANET_DECLARE_KERNELS(RepConvKernels, rep_conv_kernels)

// The number of pixels that the kernels on the matrix unit may read behind an image with a border, without using them.
constexpr int64_t kTileOverrun = 32;

// An image as the kernels on the matrix unit read or write it: its rows are row_pixels pixels apart. has_border: zeros
// surround the image, a row above and below it, and one pixel between successive rows (row_pixels = W + 1), which is
// the right neighbor of one row and the left neighbor of the next.
struct TileImage : ImageView {
  int64_t row_pixels;
  bool has_border;
};

// The kernels on the matrix unit, for an input in bfloat16. Weight and bias are bfloat16, or float32 if
// RepConvParams::has_float32_weight.
struct RepConvTileKernels {
  int64_t (*panels)(const RepConvParams&);         // of output channels
  int64_t (*prepared_size)(const RepConvParams&);  // in values
  // Lays out the weight [C_out, C, taps].
  void (*prepare)(const RepConvParams&, const void* weight, BFloat16* prepared);
  int64_t (*scratch_size)(const RepConvParams&, int64_t rows);  // in bytes, for this number of output rows
  // Whether `forward` reads this input directly, without a copy in scratch memory.
  bool (*reads_directly)(const RepConvParams&, const TileImage& input);
  // Computes the output rows [begin, end) of image n and the panels [first, last) of output channels. If input has a
  // border, its memory must extend kTileOverrun pixels behind the border below the last image.
  void (*forward)(
      const RepConvParams&, const TileImage& input, const BFloat16* prepared, const void* bias, const TileImage& out,
      int64_t n, int64_t begin, int64_t end, int64_t first, int64_t last, char* scratch);
  // RepConvKernels::few_inputs for an input, a weight and a bias in float32 and a result in bfloat16. The scratch
  // memory has few_inputs_scratch bytes. is_first: whether this is the first call with this scratch memory, in which
  // the kernel keeps the packed weight. panel: RepConvKernels::panel. Values are multiplied as the sums of two
  // bfloat16 values (rep_conv_stem.h), except with AVX512_BF16.
  int64_t (*few_inputs_scratch)(const RepConvParams&);
  void (*few_inputs)(
      const RepConvParams&, ImageView input, const float* prepared, int64_t panel, const void* bias, ImageView out,
      int64_t begin, int64_t end, char* scratch, bool is_first);
};

DANET_DECLARE_TILE_KERNELS(RepConvTileKernels, rep_conv_tile_kernels)

}  // namespace danet
