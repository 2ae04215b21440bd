// SDC on the CPU, the side that torch calls: checks, memory, threads.
#include <numeric>
#include <tuple>

#include "../common/tensor.h"
#include "sdc.h"

namespace danet {
namespace {

using Sizes = std::vector<int64_t>;

// The kernels count the elements of one image, and of a border of two pixels around it, in 32 bits.
bool fits_32_bits(const SdcParams& p, int64_t pixel_stride) {
  return double(p.H + 4) * double(p.W + 4) * double(pixel_stride) < 0x1p31;
}

SdcParams check_sdc(
    const Tensor& input, const Tensor& offset, const Tensor& mask, int64_t groups, const Sizes& kernel_size,
    const Sizes& stride, const Sizes& padding, const Sizes& dilation, double offset_scale, bool softmax,
    bool remove_center) {
  DANET_CHECK(input.is_cpu() && input.dim() == 4, "sdc: input must be [N, C, H, W] on the CPU");
  dtype_of(input);
  SdcParams p{};
  p.N = input.size(0), p.C = input.size(1), p.H = input.size(2), p.W = input.size(3), p.G = groups;
  p.offset_scale = offset_scale, p.softmax = softmax, p.remove_center = remove_center;
  DANET_CHECK(p.C > 0 && p.H > 0 && p.W > 0, "sdc: input must have C, H, W >= 1");
  DANET_CHECK(fits_32_bits(p, p.C), "sdc: the CPU kernels take images of less than 2^31 elements each");
  DANET_CHECK(groups >= 1 && p.C % groups == 0, "sdc: groups must divide C");
  DANET_CHECK(
      kernel_size.size() == 2 && stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
      "sdc: kernel_size, stride, padding and dilation must be pairs");
  int64_t out[2];
  for (int axis = 0; axis < 2; ++axis) {
    p.kernel_size[axis] = kernel_size[axis], p.stride[axis] = stride[axis];
    p.padding[axis] = padding[axis], p.dilation[axis] = dilation[axis];
    for (int64_t value : {kernel_size[axis], stride[axis], dilation[axis], padding[axis] + 1})
      DANET_CHECK(value >= 1 && value < (1 << 24), "sdc: kernel_size, stride, padding or dilation out of range");
    int64_t window = dilation[axis] * (kernel_size[axis] - 1) + 1;
    out[axis] = (input.size(2 + axis) + 2 * padding[axis] - window) / stride[axis] + 1;
    DANET_CHECK(input.size(2 + axis) + 2 * padding[axis] >= window, "sdc: input must be as large as the window");
  }
  p.H_out = out[0], p.W_out = out[1];
  p.K = kernel_size[0] * kernel_size[1] - (remove_center ? 1 : 0);
  DANET_CHECK(p.K >= 1 && (!remove_center || p.K % 2 == 0), "sdc: remove_center needs an odd kernel_size above 1");
  DANET_CHECK(p.K <= kMaxTaps, "sdc: the CPU kernels take at most ", kMaxTaps, " taps");
  check_like("sdc", "offset", offset, input, {p.N, 2 * p.G * p.K, p.H_out, p.W_out});
  check_like("sdc", "mask", mask, input, {p.N, p.G * p.K, p.H_out, p.W_out});
  return p;
}

// The input, copied where it is a slice of too wide pixels.
Image dense_enough(const Tensor& input, const SdcParams& p) {
  Image image(input);
  if (fits_32_bits(p, image.view.pixel_stride)) return image;
  return Image(torch::stable::clone(torch::stable::contiguous(input)));
}

// Elementary operations of one output row: the preparation of its taps and their corners' channels, a vector at a time.
int64_t row_cost(const SdcParams& p) { return p.W_out * p.K * (4 * p.G + p.C / 2); }

Tensor sdc(
    const Tensor& input, const Tensor& offset, const Tensor& mask, int64_t groups, Sizes kernel_size, Sizes stride,
    Sizes padding, Sizes dilation, double offset_scale, bool softmax, bool remove_center) {
  const SdcParams p = check_sdc(
      input, offset, mask, groups, kernel_size, stride, padding, dilation, offset_scale, softmax, remove_center);
  const SdcKernels& kernels = DANET_KERNELS(sdc_kernels, dtype_of(input));
  const Image x(dense_enough(input, p)), offsets(offset), masks(mask), out(empty_image(input, {p.N, p.C, p.H_out, p.W_out}));
  parallel_for(p.N * p.H_out, row_cost(p), [&](int64_t begin, int64_t end) {
    kernels.forward(p, x.view, offsets.view, masks.view, out.view, begin, end);
  });
  return out.tensor;
}

// Every row of grad_input has one owner, which adds what reaches it in the order of the output pixels: the sums are the
// same whatever the number of bands and threads. An owner also does its share of grad_offset and grad_mask, on the way.
std::tuple<Tensor, Tensor, Tensor> sdc_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& mask, int64_t groups,
    Sizes kernel_size, Sizes stride, Sizes padding, Sizes dilation, double offset_scale, bool softmax,
    bool remove_center) {
  const SdcParams p = check_sdc(
      input, offset, mask, groups, kernel_size, stride, padding, dilation, offset_scale, softmax, remove_center);
  check_like("sdc", "grad_output", grad_output, input, {p.N, p.C, p.H_out, p.W_out});
  const SdcKernels& kernels = DANET_KERNELS(sdc_kernels, dtype_of(input));
  const Image grad_out(grad_output), x(dense_enough(input, p)), offsets(offset), masks(mask);
  const Image grad_offset(empty_image(offset, offset.sizes())), grad_mask(empty_image(mask, mask.sizes()));
  const bool is_half = input.scalar_type() != ScalarType::Float && input.scalar_type() != ScalarType::Double;
  const Image grad_input(torch::stable::empty(
      input.sizes(), is_half ? ScalarType::Float : input.scalar_type(), std::nullopt, input.device(), std::nullopt,
      MemoryFormat::ChannelsLast));
  const int64_t element = input.scalar_type() == ScalarType::Double ? 8 : 4;

  // As many bands of rows an image as give every thread the same number of them.
  const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(
      torch::stable::get_num_threads(), p.N * p.H_out * row_cost(p) / kWorkPerThread));
  const int64_t bands = p.N == 0 ? 1 : std::min(threads / std::gcd(p.N, threads), std::min(p.H, p.H_out));
  std::unique_ptr<int32_t[][2]> reach;
  if (bands > 1) {
    reach.reset(new int32_t[p.N * p.H_out][2]);
    parallel_for(p.N * p.H_out, p.W_out * p.G * p.K, [&](int64_t begin, int64_t end) {
      kernels.reach(p, offsets.view, begin, end, reach.get());
    });
  }
  torch::stable::parallel_for(0, p.N * bands, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      int64_t n = unit / bands, band = unit % bands;
      int64_t first = p.H * band / bands, last = p.H * (band + 1) / bands;
      std::memset(
          grad_input.view.pixel<char>(0, 0) + (n * p.H + first) * p.W * p.C * element, 0,
          size_t((last - first) * p.W * p.C * element));
      kernels.backward(
          p, grad_out.view, x.view, offsets.view, masks.view, grad_input.view, grad_offset.view, grad_mask.view, n,
          p.H_out * band / bands, p.H_out * (band + 1) / bands, first, last, reach.get());
    }
  });
  Tensor result = is_half ? torch::stable::to(grad_input.tensor, input.scalar_type()) : grad_input.tensor;
  return {result, grad_offset.tensor, grad_mask.tensor};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(danet, CPU, library) {
  library.impl("sdc", TORCH_BOX(&sdc));
  library.impl("sdc_backward", TORCH_BOX(&sdc_backward));
}

}  // namespace danet
