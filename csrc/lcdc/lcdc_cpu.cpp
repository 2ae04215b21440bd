// The torch operators lcdc and lcdc_backward on the CPU: argument checks, memory and threads.
#include <tuple>
#include <vector>

#include "../common/threads.h"
#include "lcdc_check.h"

namespace danet {
namespace {

Tensor lcdc(const Tensor& input, const Tensor& weight, bool gate) {
  const LcdcParams p = check_lcdc(input, weight, gate);
  const LcdcKernels& kernels = DANET_KERNELS(lcdc_kernels, dtype_of(input));
  const Image x(input), out(empty_image(input, input.sizes()));
  const Tensor taps = torch::stable::contiguous(weight);
  parallel_for(p.N * p.P, p.C * (1 + p.k / 4), [&](int64_t begin, int64_t end) {
    Scratch scratch(kernels.scratch_size(p));
    kernels.forward(p, x.view, taps.const_data_ptr(), out.view, begin, end, scratch.get());
  });
  return out.tensor;
}

std::tuple<Tensor, Tensor> lcdc_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, bool gate) {
  const LcdcParams p = check_lcdc(input, weight, gate);
  check_like("lcdc", "grad_output", grad_output, input, input.sizes());
  const LcdcKernels& kernels = DANET_KERNELS(lcdc_kernels, dtype_of(input));
  const Image grad(grad_output), x(input), grad_input(empty_image(input, input.sizes()));
  const Tensor taps = torch::stable::contiguous(weight);
  Tensor grad_weight = torch::stable::empty(weight.sizes(), weight.scalar_type());
  const int64_t cost = p.C * (3 + p.k / 2);

  if (!p.shared) {
    parallel_for(p.P, p.N * cost, [&](int64_t begin, int64_t end) {
      Scratch scratch(kernels.scratch_size(p));
      kernels.backward(
          p, grad.view, x.view, taps.const_data_ptr(), grad_input.view, nullptr, grad_weight.mutable_data_ptr(), begin,
          end, scratch.get());
    });
    return {grad_input.tensor, grad_weight};
  }

  // Sum grad_weight in parts, then the parts in order. Their number depends on the sizes only, so the result is the
  // same for any number of threads.
  const int64_t pixels = p.N * p.P;
  const int64_t parts = std::max<int64_t>(1, std::min({pixels / 16, int64_t(512), 65536 / p.k}));
  std::vector<double> partial(size_t(parts * p.k));
  parallel_for(parts, pixels / parts * cost, [&](int64_t begin, int64_t end) {
    Scratch scratch(kernels.scratch_size(p));
    for (int64_t part = begin; part < end; ++part)
      kernels.backward(
          p, grad.view, x.view, taps.const_data_ptr(), grad_input.view, partial.data() + part * p.k, nullptr,
          pixels * part / parts, pixels * (part + 1) / parts, scratch.get());
  });
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t j = 0; j < p.k; ++j) partial[j] += partial[part * p.k + j];
  kernels.convert(partial.data(), grad_weight.mutable_data_ptr(), p.k);
  return {grad_input.tensor, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(danet, CPU, library) {
  library.impl("lcdc", TORCH_BOX(&lcdc));
  library.impl("lcdc_backward", TORCH_BOX(&lcdc_backward));
}

}  // namespace danet
