// SDC, DCNv3 and DCNv4 on the CPU, as torch calls them: limits, memory, threads. The kernels are in sdc_kernels.cpp.
#include "../common/threads.h"
#include "sdc_image.h"
#include "sdc_parallel.h"
#include "sdc_torch.h"

namespace danet {
namespace {

// Elementary operations of one output row: preparing its taps, and gathering the channels of their corners by vectors.
int64_t row_cost(const SdcParams& p) { return p.W_out * p.K * (4 * p.G + p.C / 2); }

Tensor run_forward(const SdcParams& p, const Tensor& input, const ImageView& offset, const ImageView& mask) {
  check_sdc_limits<std::runtime_error>("sdc", p, p.C);
  const SdcKernels& kernels = DANET_KERNELS(sdc_kernels, dtype_of(input));
  const Image x(compact_image(input, p)), out(empty_image(input, {p.N, p.C_out, p.H_out, p.W_out}));
  parallel_for(p.N * p.H_out, row_cost(p), [&](int64_t begin, int64_t end) {
    kernels.forward(p, x.view, offset, mask, out.view, begin, end);
  });
  return out.tensor;
}

// The result is always deterministic.
Tensor run_backward(
    const SdcParams& p, const Tensor& grad_output, const Tensor& input, const ImageView& offset, const ImageView& mask,
    const ImageView& grad_offset, const ImageView& grad_mask, bool /* deterministic */) {
  check_sdc_limits<std::runtime_error>("sdc", p, p.C);
  check_like("sdc", "grad_output", grad_output, input, {p.N, p.C_out, p.H_out, p.W_out});
  const SdcKernels& kernels = DANET_KERNELS(sdc_kernels, dtype_of(input));
  const Image grad_out(grad_output), x(compact_image(input, p));
  const bool is_double = input.scalar_type() == ScalarType::Double;
  const Image grad_input(
      torch::stable::empty(
          input.sizes(), is_double ? ScalarType::Double : ScalarType::Float, std::nullopt, input.device(), std::nullopt,
          MemoryFormat::ChannelsLast));
  const int64_t threads = std::max<int64_t>(
      1, std::min<int64_t>(torch::stable::get_num_threads(), p.N * p.H_out * row_cost(p) / kWorkPerThread));
  backward_in_bands(
      p, kernels, grad_out.view, x.view, offset, mask, grad_input.view, grad_offset, grad_mask, is_double ? 8 : 4,
      threads, [](int64_t count, int64_t cost, const auto& body) { parallel_for(count, cost, body); });
  return grad_input.tensor.scalar_type() == input.scalar_type()
             ? grad_input.tensor
             : torch::stable::to(grad_input.tensor, input.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(danet, CPU, library) { register_operators(library); }

}  // namespace danet
