// SDC, DCNv3 and DCNv4 on the CPU, the side that torch calls: checks, memory, threads.
#include <numeric>

#include "../common/threads.h"
#include "sdc_operators.h"

namespace danet {
namespace {

// The kernels count the elements of one image, and of a border of two pixels around it, in 32 bits.
bool fits_32_bits(const SdcParams& p, int64_t pixel_stride) {
  return double(p.H + 4) * double(p.W + 4) * double(pixel_stride) < 0x1p31;
}

void check_limits(const SdcParams& p) {
  DANET_CHECK(fits_32_bits(p, p.C), "sdc: the CPU kernels take images of less than 2^31 elements each");
  DANET_CHECK(p.K <= kMaxTaps, "sdc: the CPU kernels take at most ", kMaxTaps, " taps");
}

// The input, copied where it is a slice of too wide pixels.
Image dense_enough(const Tensor& input, const SdcParams& p) {
  Image image(input);
  if (fits_32_bits(p, image.view.pixel_stride)) return image;
  return Image(torch::stable::clone(torch::stable::contiguous(input)));
}

// Elementary operations of one output row: the preparation of its taps and their corners' channels, a vector at a time.
int64_t row_cost(const SdcParams& p) { return p.W_out * p.K * (4 * p.G + p.C / 2); }

Tensor forward(const SdcParams& p, const Tensor& input, const ImageView& offset, const ImageView& mask) {
  check_limits(p);
  const SdcKernels& kernels = DANET_KERNELS(sdc_kernels, dtype_of(input));
  const Image x(dense_enough(input, p)), out(empty_image(input, {p.N, p.C, p.H_out, p.W_out}));
  parallel_for(p.N * p.H_out, row_cost(p), [&](int64_t begin, int64_t end) {
    kernels.forward(p, x.view, offset, mask, out.view, begin, end);
  });
  return out.tensor;
}

// Every row of grad_input has one owner, which adds what reaches it in the order of the output pixels: the sums are the
// same whatever the number of bands and threads. An owner also does its share of grad_offset and grad_mask, on the way.
Tensor backward(
    const SdcParams& p, const Tensor& grad_output, const Tensor& input, const ImageView& offset, const ImageView& mask,
    const ImageView& grad_offset, const ImageView& grad_mask, bool) {
  check_limits(p);
  check_like("sdc", "grad_output", grad_output, input, {p.N, p.C, p.H_out, p.W_out});
  const SdcKernels& kernels = DANET_KERNELS(sdc_kernels, dtype_of(input));
  const Image grad_out(grad_output), x(dense_enough(input, p));
  const bool is_half = input.scalar_type() != ScalarType::Float && input.scalar_type() != ScalarType::Double;
  const Image grad_input(
      torch::stable::empty(
          input.sizes(), is_half ? ScalarType::Float : input.scalar_type(), std::nullopt, input.device(), std::nullopt,
          MemoryFormat::ChannelsLast));
  const int64_t element = input.scalar_type() == ScalarType::Double ? 8 : 4;

  // As many bands of rows an image as give every thread the same number of them.
  const int64_t threads = std::max<int64_t>(
      1, std::min<int64_t>(torch::stable::get_num_threads(), p.N * p.H_out * row_cost(p) / kWorkPerThread));
  const int64_t bands = p.N == 0 ? 1 : std::min(threads / std::gcd(p.N, threads), std::min(p.H, p.H_out));
  std::unique_ptr<int32_t[][2]> reach;
  if (bands > 1) {
    reach.reset(new int32_t[p.N * p.H_out][2]);
    parallel_for(p.N * p.H_out, p.W_out * p.G * p.K, [&](int64_t begin, int64_t end) {
      kernels.reach(p, offset, begin, end, reach.get());
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
          p, grad_out.view, x.view, offset, mask, grad_input.view, grad_offset, grad_mask, n, p.H_out * band / bands,
          p.H_out * (band + 1) / bands, first, last, reach.get());
    }
  });
  return is_half ? torch::stable::to(grad_input.tensor, input.scalar_type()) : grad_input.tensor;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(danet, CPU, library) { register_operators(library); }

}  // namespace danet
