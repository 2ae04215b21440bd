// Compiles the kernels of DCNv4 that its operator launches for float16, 3x3 windows without softmax. The include path
// must name DCNv4_op/src/cuda of a checkout of DCNv4, and the folder include beside this file.
#include "dcnv4_im2col_cuda.cuh"
#include "dcnv4_col2im_cuda.cuh"

// d_stride: channels per thread. transfer_t: the type in which a thread loads them.
#define FORWARD(d_stride, transfer_t) \
  template __global__ void forward_kernel_dcn_reg<at::Half, d_stride, transfer_t, 1, 9, false>( \
      const at::Half*, const at::Half*, at::Half*, int, int, int, int, int, int, int, int, int, int, int, int, int, int, \
      int, float, int, int, int);
FORWARD(2, uint)
FORWARD(4, uint2)
FORWARD(8, uint4)
FORWARD(16, ulonglong4)

#define BACKWARD(d_stride, transfer_t) \
  template __global__ void backward_kernel_dcn_warp_primitive<at::Half, d_stride, transfer_t, 1, 9, false>( \
      const at::Half*, const at::Half*, const at::Half*, int, int, int, int, int, int, int, int, int, int, int, int, int, \
      int, int, float, int, int, float*, float*, int);
BACKWARD(1, at::Half)
BACKWARD(2, uint)
BACKWARD(4, uint2)
BACKWARD(8, uint4)
