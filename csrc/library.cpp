// The schemas of all operators. Each operator's folder registers its implementations; danet/ops registers fake kernels
// and gradients. After a release, a changed schema needs a new operator name, because torch.compile caches graphs on
// users' disks by operator name alone.
#include <torch/csrc/stable/library.h>

#include "common/kernels.h"
#include "sdc/sdc_schema.h"

#if defined(DANET_EMULATION)  // the CUDA kernels, compiled for the CPU by tests/emulation
STABLE_TORCH_LIBRARY(danet_emulated, library) {
#else
STABLE_TORCH_LIBRARY(danet, library) {
#endif
  // input [N, C, H, W], offset [N, 2*G*K, H_out, W_out], mask [N, G*K, H_out, W_out] -> [N, C, H_out, W_out]
  library.def("sdc(Tensor input, Tensor offset, Tensor mask" DANET_SDC_SCHEMA ") -> Tensor");
  // grad_output [N, C, H_out, W_out] -> the gradients of input, offset and mask; on the CPU always deterministic
  library.def(
      "sdc_backward(Tensor grad_output, Tensor input, Tensor offset, Tensor mask" DANET_SDC_SCHEMA
      ", bool deterministic) -> (Tensor, Tensor, Tensor)");
  // The same with the taps and the pairs of offsets in DCNv3's order
  library.def("dcnv3(Tensor input, Tensor offset, Tensor mask" DANET_SDC_SCHEMA ") -> Tensor");
  library.def(
      "dcnv3_backward(Tensor grad_output, Tensor input, Tensor offset, Tensor mask" DANET_SDC_SCHEMA
      ", bool deterministic) -> (Tensor, Tensor, Tensor)");
  // As sdc, without the sum over the taps: [N, K*C, H_out, W_out]; softmax must be false
  library.def("deform_im2col(Tensor input, Tensor offset, Tensor mask" DANET_SDC_SCHEMA ") -> Tensor");
  library.def(
      "deform_im2col_backward(Tensor grad_output, Tensor input, Tensor offset, Tensor mask" DANET_SDC_SCHEMA
      ", bool deterministic) -> (Tensor, Tensor, Tensor)");
  // weight [C_out, C, kernel_h, kernel_w] or, depth-wise, [C, 1, kernel_h, kernel_w], bias [C_out]
  // -> [N, C_out, H_out, W_out]; only on the CPU, in float32; the other options as in deform_im2col
  library.def(
      "deform_conv2d(Tensor input, Tensor offset, Tensor mask, Tensor weight, Tensor? bias" DANET_SDC_SCHEMA
      ") -> Tensor");
  // As dcnv3, with offset and mask in one tensor [N, at least 3*G*K, H_out, W_out]
  library.def("dcnv4(Tensor input, Tensor offset_mask" DANET_SDC_SCHEMA ") -> Tensor");
  library.def(
      "dcnv4_backward(Tensor grad_output, Tensor input, Tensor offset_mask" DANET_SDC_SCHEMA
      ", bool deterministic) -> (Tensor, Tensor)");
  // input [N, C, H, W], weight [1 or H*W, k] -> [N, C, H, W]
  library.def("lcdc(Tensor input, Tensor weight, bool gate) -> Tensor");
  // grad_output [N, C, H, W] -> the gradients of input and weight
  library.def("lcdc_backward(Tensor grad_output, Tensor input, Tensor weight, bool gate) -> (Tensor, Tensor)");
  // input and logits [N, C, H, W] -> [N, C, H, W]
  library.def("softmax_gate(Tensor input, Tensor logits) -> Tensor");
  // grad_output [N, C, H, W] -> the gradients of input and logits
  library.def("softmax_gate_backward(Tensor grad_output, Tensor input, Tensor logits) -> (Tensor, Tensor)");
  // input [N, C, H, W], weight [C_out, C, 3, 3] or [C_out, C, 1, 1], prepared: prepare_rep_conv(weight), bias [C_out]
  // -> [N, C_out, ceil(H / stride), ceil(W / stride)] of out_dtype, by default weight's dtype; forward only. On the
  // CPU, weight and bias may be float32 for an input of 16 bits. tf32: CUDA kernels may round float32 to TF32
  library.def(
      "rep_conv(Tensor input, Tensor weight, Tensor? prepared, Tensor? bias, int stride, bool relu, bool tf32, "
      "ScalarType? out_dtype=None) -> Tensor");
  // weight as above -> packed weights for inputs of input_dtype, by default weight's dtype; their type and layout
  // depend on the other arguments and on the instruction set and may change between versions
  library.def("prepare_rep_conv(Tensor weight, int stride, ScalarType? input_dtype=None) -> Tensor");
  // depthwise [C, 3, 3], predictor [27*G, C], expand [2*C, C], reduce [C, 2*C] and their biases, float32, or bfloat16
  // with AMX or AVX512_BF16 -> packed weights for images of that dtype; their layout depends on the instruction set and
  // may change between versions
  library.def(
      "prepare_safem(Tensor depthwise, Tensor depthwise_bias, Tensor predictor, Tensor predictor_bias, Tensor expand, "
      "Tensor expand_bias, Tensor reduce, Tensor reduce_bias, int groups) -> Tensor");
  // input [N, C, H, W], up [N, 4*C, ceil(H / 2), ceil(W / 2)], weight [N, C] -> [N, C, H, W]; forward only
  library.def("safem(Tensor input, Tensor prepared, Tensor? up, Tensor? weight, int groups, float scale) -> Tensor");
  // input [N, C, H, W] -> [N, C]; forward only
  library.def("acfa_weight(Tensor input, Tensor prepared, int groups) -> Tensor");
  // image [N, C, H, W] -> the values of `outputs` after the program (program/program.h) has run; forward only
  library.def(
      "run_program(Tensor image, Tensor[] tensors, int[] code, float[] numbers, int num_values, int[] outputs, "
      "bool uses_torch) -> Tensor[]");
  // image and past [H, W], uint8 or uint16 (past may be empty), smoothing [odd] -> [E, H, W], float32: details of the
  // image with with_image, of its difference to each past, and with several of them what these share; on the CPU
  library.def(
      "detail_channels(Tensor image, Tensor[] past, float[] smoothing, int detail_size, int neighborhood_size, "
      "float units, float limit, float min_deviation, bool with_image) -> Tensor");
  // value [N, S, M, D], sampling_locations [N, Q, M, L, P, 2], attention_weights [N, Q, M, L, P] (both of value's dtype
  // or float32), spatial_shapes [L, 2] and level_start_index [L] (int64) -> [N, Q, M*D]
  library.def(
      "ms_deform_attn(Tensor value, Tensor sampling_locations, Tensor attention_weights, Tensor spatial_shapes, "
      "Tensor level_start_index, bool softmax) -> Tensor");
  // grad_output [N, Q, M*D] -> the gradients of value, sampling_locations and attention_weights
  library.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, Tensor sampling_locations, Tensor attention_weights, "
      "Tensor spatial_shapes, Tensor level_start_index, bool softmax, bool deterministic) -> (Tensor, Tensor, Tensor)");
  // 0: baseline, 1: AVX2 and FMA, 2: AVX-512
  library.def("cpu_capability() -> int");
  // For bfloat16. 0: none, 1: AMX, 2: the same emulated, for tests, 3: AVX512_BF16
  library.def("matrix_unit() -> int");
  library.def("is_bfloat16_fast() -> bool");
}

#if !defined(DANET_EMULATION)
static int64_t cpu_capability() { return int64_t(danet::isa()); }
static int64_t matrix_unit() { return int64_t(danet::matrix_unit()); }
static bool is_bfloat16_fast() { return danet::is_bfloat16_fast(); }

STABLE_TORCH_LIBRARY_IMPL(danet, CompositeExplicitAutograd, library) {
  library.impl("cpu_capability", TORCH_BOX(&cpu_capability));
  library.impl("matrix_unit", TORCH_BOX(&matrix_unit));
  library.impl("is_bfloat16_fast", TORCH_BOX(&is_bfloat16_fast));
}
#endif
