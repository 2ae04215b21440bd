// rep_conv: 3x3 convolution with padding 1, bias and an optional ReLU in one pass.
//
//   out[n, o, y, x] = relu(bias[o] + sum_{c, i, j < 3} weight[o, c, i, j] * input[n, c, y*s - 1 + i, x*s - 1 + j])
//
// On the CPU mostly by Winograd's method: output tiles of 4x4 from input tiles of 6x6 (at stride 2 of 9x9),
//
//   out tile = A^T [ sum_c (G w G^T) * (B^T d B) ] A
//
// with 36 (81) multiplications for 16 outputs instead of 144.
#pragma once

#include <cstdint>

#include "../common/kernels.h"

namespace danet {

struct RepConvParams {
  int64_t N, C, C_out, H, W;
  bool relu;
  int64_t stride;

  int64_t H_out() const { return (H - 1) / stride + 1; }
  int64_t W_out() const { return (W - 1) / stride + 1; }
};

// Fewer channels than this are few; and the most that few_outputs reads beside the image.
constexpr int64_t kFew = 8, kFewChannels = 4096;

// Winograd's convolution at one stride. Tiles of 4x4 outputs are numbered row after row, image after image.
struct WinogradKernels {
  // Tiles that are worked on together.
  int64_t (*tiles_at_once)(const RepConvParams&);
  int64_t (*scratch_size)(const RepConvParams&, int64_t tiles);
  // Tiles [begin, end), panels [first, last). The weight as panels [ceil(C_out / panel), 9 * C, panel], zeros beyond C_out;
  // bias [C_out] or null.
  void (*forward)(
      const RepConvParams&, ImageView input, const float* prepared, const void* bias, ImageView out, int64_t begin,
      int64_t end, int64_t first, int64_t last, char* scratch);
};

// The CPU kernels of one type.
struct RepConvKernels {
  int64_t panel;                // output channels in a panel
  WinogradKernels winograd[2];  // for stride 1 and 2
  // Few output channels, stride 1: a pixel's window times each of them. The weight as [C_out, 9, C] floats; C_out up to
  // 8. Output rows n * H + y of [begin, end).
  void (*few_outputs)(
      const RepConvParams&, ImageView input, const float* weight, const void* bias, ImageView out, int64_t begin,
      int64_t end);
  // Few input channels, any stride: windows as rows of a matrix product. The weight as panels [ceil(C_out / panel), 9*C,
  // panel]; output rows n * H_out + y of [begin, end).
  void (*few_inputs)(
      const RepConvParams&, ImageView input, const float* weight, const void* bias, ImageView out, int64_t begin,
      int64_t end);
};

DANET_DECLARE_KERNELS(RepConvKernels, rep_conv_kernels)

}  // namespace danet
