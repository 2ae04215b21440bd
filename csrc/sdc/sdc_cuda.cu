// SDC, DCNv3, DCNv4 and deform_im2col on CUDA devices, as torch calls them: choice of the kernel, launch, memory. The
// kernels are in sdc_forward.cuh, sdc_im2col.cuh and sdc_backward.cuh.
#include "../common/device.h"
#include "sdc_backward.cuh"
#include "sdc_forward.cuh"
#include "sdc_im2col.cuh"
#include "sdc_torch.h"

namespace danet {
namespace {

// Shared memory per item in bytes, enough for im2col_kernel and for the kernels of the backward pass: BackwardTap,
// grad_m and the corners inside the image of each tap.
template <typename A>
int shared_bytes_per_item(const SdcParams& p) {
  return int(p.K) * int(5 * sizeof(A) + sizeof(uint32_t)) + int(sizeof(int64_t));
}

template <typename A>
int choose_items_per_block(const SdcParams& p) {
  return std::max(1, std::min(kMaxItems, gpu::kDefaultSharedBytes / shared_bytes_per_item<A>(p)));
}

// Whether int32_t is enough for the index of every item, and for the index of every element within its image.
bool fits_int32_index(const SdcParams& p, const ImageView& input, const ImageView& offset, const ImageView& mask) {
  const int64_t end = int64_t(1) << 31, stride = std::max(input.pixel_stride, p.C);
  const int64_t out_stride = std::max({p.C, offset.pixel_stride, mask.pixel_stride, p.G * p.offset_group_stride});
  return p.N * p.H_out * p.W_out * p.G < end - kMaxItems && (p.H + 4) * (p.W + 4) < end / stride &&
         p.H_out * p.W_out < end / out_stride - 1;
}

// Calls body(index, packet_size, taps, x_first). The four values carry the template arguments of the kernels: the index
// type, the number of channels per packet, K (0: any window), and the order of taps. Common cases get kernels with
// 32-bit indices, packets of 16 bytes (not for float64), and 3x3 windows in either order. Rare cases use more general
// kernels.
template <typename T, typename Body>
void dispatch(
    const SdcParams& p, const ImageView& input, const ImageView& offset, const ImageView& mask, bool packets_fit,
    const Body& body) {
  constexpr Constant<gpu::Packet<T>::kSize> packet_size{};
  // The kernels for 3x3 windows load the two offsets of a tap at once, except in DCN's order: these pairs must be
  // aligned.
  const bool pairs_are_aligned = p.x_first || (is_aligned<T>(offset, 2) && p.offset_group_stride % 2 == 0);
  const bool is_3x3 = p.kernel_size[0] == 3 && p.kernel_size[1] == 3 && !p.remove_center && pairs_are_aligned;
  if constexpr (sizeof(T) < 8) {
    if (packets_fit && !fits_int32_index(p, input, offset, mask))
      return body(int64_t{}, packet_size, Constant<0>{}, std::false_type{});
    if (packets_fit && is_3x3 && p.x_first) return body(int32_t{}, packet_size, Constant<9>{}, std::true_type{});
    if (packets_fit && is_3x3) return body(int32_t{}, packet_size, Constant<9>{}, std::false_type{});
    if (packets_fit) return body(int32_t{}, packet_size, Constant<0>{}, std::false_type{});
  }
  body(int64_t{}, Constant<1>{}, Constant<0>{}, std::false_type{});
}

// Throws if the call exceeds the limits of these kernels, which also index the pixels of an output image with int32_t.
void check_limits(const SdcParams& p) {
  check_sdc_limits<std::runtime_error>("sdc", p, 1);
  require<std::runtime_error>(
      double(p.H_out) * double(p.W_out) < 0x1p31, "sdc",
      "the output must have H_out * W_out < 2^31, got H_out = ", p.H_out, ", W_out = ", p.W_out);
}

// The image, or a contiguous copy if its pixels lie 4 GiB or more apart: ForwardStrides::pixel_bytes has 32 bits.
Image with_near_pixels(const SdcParams& p, const Image& image) {
  const auto is_near = [&](const Image& x) {
    return p.H * p.W <= 1 || x.view.pixel_stride * int64_t(x.tensor.element_size()) < int64_t(1) << 32;
  };
  if (is_near(image)) return image;
  const Image copy(torch::stable::contiguous(image.tensor, MemoryFormat::ChannelsLast));
  require<std::runtime_error>(is_near(copy), "sdc", "the channels of a pixel must have less than 4 GiB, got C = ", p.C);
  return copy;
}

Tensor run_forward(const SdcParams& p, const Tensor& input, const ImageView& offset, const ImageView& mask) {
  check_limits(p);
  const DeviceGuard device_guard(input);
  const Image x = with_near_pixels(p, Image(input));
  const Image out(empty_image(input, {p.N, p.C_out, p.H_out, p.W_out}));
  const int64_t num_items = p.N * p.H_out * p.W_out * p.G;
  if (num_items == 0) return out.tensor;
  with_type(input, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    const bool packets_fit = fits_packets<T>(p.C / p.G, {x.view});
    constexpr int kPlacesBytes = kMaxItems * int(sizeof(OutputPlace));
    const int taps_bytes = int(p.K) * ForwardTapTable<T>::kBytes;  // of an item
    dispatch<T>(p, x.view, offset, mask, packets_fit, [&](auto index, auto packet_size, auto taps, auto x_first) {
      if (p.tap_stride > 0) {
        const int items_per_block = choose_items_per_block<A>(p);
        return gpu::launch(
            "deform_im2col", im2col_kernel<T, decltype(packet_size)::value>,
            {blocks_for("deform_im2col", num_items, items_per_block), kThreads,
             size_t(items_per_block * shared_bytes_per_item<A>(p)), device_guard.stream()},
            p, SamplingGrid<A>(p), x.view, offset, mask, out.view, num_items, items_per_block);
      }
      constexpr int kPacketSize = decltype(packet_size)::value, kTaps = decltype(taps)::value;
      const PacketSchedule packets(p.C / p.G / kPacketSize, kPacketsPerThread<T, kPacketSize, kTaps>);
      // The last limit bounds the work of a block if there are very many channels.
      int64_t max_items = std::min<int64_t>(
          {kMaxItems, (gpu::kDefaultSharedBytes - kPlacesBytes) / taps_bytes,
           (int64_t(1) << 20) / packets.threads_per_item.divisor});
      // Use smaller blocks for small images: more multiprocessors work, and each thread computes fewer packets.
      while (max_items > 32 && p.N * p.H_out * p.W_out * p.G < 2 * max_items * gpu::multiprocessor_count())
        max_items /= 2;
      const ForwardTiles tiles(p, int(std::max<int64_t>(1, max_items)), p.C / p.G * int64_t(sizeof(T)));
      StagedRun staged;
      if constexpr (kCanStage<T, kTaps>) staged = StagedRun::plan<T>(p, tiles, offset, mask);
      gpu::launch(
          "sdc", forward_kernel<T, decltype(index), kPacketSize, kTaps, decltype(x_first)::value>,
          {blocks_for("sdc", tiles.num_blocks(p.N), 1), kThreads,
           size_t(kPlacesBytes + tiles.items_per_block() * taps_bytes), device_guard.stream()},
          p, SamplingGrid<A>(p), tiles, ForwardStrides(p, x.view, int(sizeof(T))), staged, x.view, offset, mask,
          static_cast<T*>(out.view.data), packets);
    });
  });
  return out.tensor;
}

Tensor run_backward(
    const SdcParams& p, const Tensor& grad_output, const Tensor& input, const ImageView& offset, const ImageView& mask,
    const ImageView& grad_offset, const ImageView& grad_mask, bool deterministic) {
  check_limits(p);
  check_like("sdc", "grad_output", grad_output, input, {p.N, p.C_out, p.H_out, p.W_out});
  const DeviceGuard device_guard(input);
  const Image grad_out(grad_output), x(input);
  const bool is_double = input.scalar_type() == ScalarType::Double;
  Tensor grad_input = torch::stable::empty(
      input.sizes(), is_double ? ScalarType::Double : ScalarType::Float, std::nullopt, input.device(), std::nullopt,
      MemoryFormat::ChannelsLast);
  torch::stable::zero_(grad_input);
  const int64_t num_items = p.N * p.H_out * p.W_out * p.G;
  if (num_items > 0)
    with_type(input, [&](auto type) {
      using T = decltype(type);
      using A = Compute<T>;
      A* sums = static_cast<A*>(grad_input.mutable_data_ptr());
      const int items_per_block = choose_items_per_block<A>(p);
      const bool packets_fit = fits_packets<T>(p.C / p.G, {x.view, grad_out.view});
      dispatch<T>(p, x.view, offset, mask, packets_fit, [&](auto index, auto packet_size, auto taps, auto x_first) {
        using Index = decltype(index);
        constexpr int kPacketSize = decltype(packet_size)::value, kTaps = decltype(taps)::value;
        constexpr bool kXFirst = decltype(x_first)::value;
        // The kernels of deform_im2col take any window. They are few, because each takes long to compile.
        constexpr bool kScatter = true, kColumns = true;
        const auto kernel =
            p.tap_stride > 0
                ? (deterministic ? backward_kernel<T, Index, kPacketSize, 0, false, !kScatter, kColumns>
                                 : backward_kernel<T, Index, kPacketSize, 0, false, kScatter, kColumns>)
                : (deterministic ? backward_kernel<T, Index, kPacketSize, kTaps, kXFirst, !kScatter, !kColumns>
                                 : backward_kernel<T, Index, kPacketSize, kTaps, kXFirst, kScatter, !kColumns>);
        gpu::launch(
            "sdc", kernel,
            {blocks_for("sdc", num_items, items_per_block), kThreads,
             size_t(items_per_block * shared_bytes_per_item<A>(p)), device_guard.stream()},
            p, SamplingGrid<A>(p), grad_out.view, x.view, offset, mask, sums, grad_offset, grad_mask, num_items,
            items_per_block, int(p.C / p.G), log2_lanes_per_item(p.C / p.G / kPacketSize));
        if (!deterministic) return;
        // Deterministic: a second kernel finds the range of input rows that each output row samples; with these ranges,
        // a third kernel sums grad_input in a fixed order.
        Tensor row_ranges = torch::stable::empty(
            {p.N * p.H_out, 2}, ScalarType::Int, std::nullopt, input.device(), std::nullopt, std::nullopt);
        int32_t* rows = static_cast<int32_t*>(row_ranges.mutable_data_ptr());
        const int pixels_per_pass = std::min(32, items_per_block);
        gpu::launch(
            "sdc", find_row_ranges<T>, {blocks_for("sdc", p.N * p.H_out, 1), kThreads, 0, device_guard.stream()}, p,
            SamplingGrid<A>(p), offset, rows);
        gpu::launch(
            "sdc", backward_in_order<T, kPacketSize>,
            {blocks_for("sdc", p.N * p.H * p.G, 1), 32, size_t(pixels_per_pass * shared_bytes_per_item<A>(p)),
             device_guard.stream()},
            p, SamplingGrid<A>(p), grad_out.view, offset, mask, rows, sums, pixels_per_pass);
      });
    });
  return grad_input.scalar_type() == input.scalar_type() ? grad_input
                                                         : torch::stable::to(grad_input, input.scalar_type());
}

}  // namespace

DANET_CUDA_LIBRARY(library) { register_operators(library); }

}  // namespace danet
