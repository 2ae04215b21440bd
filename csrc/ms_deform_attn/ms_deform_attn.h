// Multi-scale deformable attention (Deformable DETR, https://arxiv.org/abs/2010.04159, equation 3, without its linear
// layers): every query of every head samples P points of each of L feature maps, the levels.
//
//   out[n, q, m*D + d] = sum_{l < L, p < P} a[n, q, m, l, p] * value_l[n, m, d, Y, X]
//   X = location[n, q, m, l, p, 0] * W_l - 1/2
//   Y = location[n, q, m, l, p, 1] * H_l - 1/2
//
//   0 <= n < N, 0 <= q < Q, 0 <= m < M, 0 <= d < D
//
// Locations are (x, y); 0 and 1 are the outer edges of a level. a is the attention weight, or the softmax of the
// weights over the L * P points of a query and head. Level l is the H_l * W_l pixels of value that begin at pixel
// start_l, row by row; it may be empty.
//
// value_l[Y, X] is interpolated bilinearly between four pixels, the corners of its cell, and is zero outside the level.
// A sample with Y <= -1, Y >= H_l, X <= -1 or X >= W_l is zero, and so are all its gradients, as in the authors'
// kernel. A sample with a NaN coordinate is NaN in the forward pass and zero in the backward pass, unless its level is
// empty.
//
// A tap is one point of one level: tap j = l * P + p. Interpolation, gather and scatter are those of SDC (csrc/sdc).
//
// The files of this folder:
//   ms_deform_attn_torch.h                                      all devices: the operators that torch calls
//   ms_deform_attn_cpu.cpp                                      CPU: limits, memory, threads
//   ms_deform_attn_kernels.cpp, ms_deform_attn_{taps,forward,backward}.h   CPU: the kernels, once per instruction set
//   ms_deform_attn_cuda.cu                                      CUDA: launches
//   ms_deform_attn_{taps,forward,backward}.cuh                  CUDA: the kernels
#pragma once

#include <cstdint>

#include "../common/kernels.h"

namespace danet {

// The sizes of a call: value [N, S, M, D], locations [N, Q, M, L, P, 2], weights [N, Q, M, L, P], out [N, Q, M*D].
struct MsDeformAttnParams {
  int64_t N, S, M, D, Q, L, P;
  bool softmax;
  // Strides of value in elements. Those of images and pixels are in its ImageView.
  int64_t head_stride;
};

// A feature map: H * W pixels that begin at pixel `start` of value.
struct MsLevel {
  int32_t H, W;
  int64_t start;
};

// The CPU kernels of one dtype of value. In views of value, a pixel is one of the S pixels. In the other views, a pixel
// is a query.
struct MsDeformAttnKernels {
  // Computes out of queries [begin, end), counted over all images: query = n * Q + q.
  using Forward = void (*)(
      const MsDeformAttnParams&, const MsLevel* levels, ImageView value, ImageView locations, ImageView weights,
      ImageView out, int64_t begin, int64_t end);
  // Computes the gradients of head m of image n. Writes the gradients of locations and weights of queries [begin, end).
  // Adds the contributions of all queries to band `band` of `bands` of grad_value, which must hold zeros, and has the
  // compute dtype (float32 for half dtypes). A band is an equal share of the rows of every level.
  using Backward = void (*)(
      const MsDeformAttnParams&, const MsLevel* levels, ImageView grad_output, ImageView value, ImageView locations,
      ImageView weights, ImageView grad_value, ImageView grad_locations, ImageView grad_weights, int64_t n, int64_t m,
      int64_t begin, int64_t end, int64_t band, int64_t bands);
  // [0]: locations and weights have value's dtype. [1]: they have the compute dtype.
  Forward forward[2];
  Backward backward[2];
};

DANET_DECLARE_KERNELS(MsDeformAttnKernels, ms_deform_attn_kernels)

}  // namespace danet
