// SaFEM and acfa_weight on CUDA devices, as torch calls them: choice of the tiles and clusters, launches. The kernels
// are in safem_pass.cuh and acfa_weight.cuh.
#include "../common/device.h"
#include "acfa_weight.cuh"
#include "safem_check.h"

namespace danet {
namespace {

constexpr int64_t kMaxClusterSize = 8;      // on every device that has clusters
constexpr int kMaxSharedBytes = 99 * 1024;  // per block, on every device from sm_80 on
constexpr int64_t kChannelsPerBlock = 64;   // a cluster has at most one block for each of so many channels

// The binary logarithm of a power of two.
int log2_of(int value) { return value == 1 ? 0 : 1 + log2_of(value / 2); }

// A channels-last image with whole, aligned packets of channels; copied if the tensor is none.
template <typename T>
Image aligned_image(const Tensor& t) {
  const Image image(t);
  if (is_aligned<T>(image.view, kSafemPacket)) return image;
  return Image(torch::stable::clone(torch::stable::contiguous(t, MemoryFormat::ChannelsLast)));
}

// How an image is divided among thread blocks.
struct SafemGrid {
  int tile_pixels, tiles, cluster;

  // Takes tiles of 32 pixels if they fill the device. If at most half of the multiprocessors would get a
  // tile, clusters of blocks share tiles.
  SafemGrid(const SafemParams& p) : tile_pixels(32), cluster(1) {
    const int64_t processors = gpu::multiprocessor_count();
    const auto count = [&] { return p.N * ((p.H * p.W + tile_pixels - 1) / tile_pixels); };
    if (count() < processors || shared_bytes(p) > kMaxSharedBytes) tile_pixels = 16;
    const int64_t most = std::min(kMaxClusterSize, p.C / kChannelsPerBlock);
    while (gpu::has_clusters() && 2 * cluster <= most && 2 * cluster * count() <= processors) cluster *= 2;
    tiles = int((p.H * p.W + tile_pixels - 1) / tile_pixels);
  }
  int shared_bytes(const SafemParams& p) const { return shared(p).size; }
  SafemShared shared(const SafemParams& p) const {
    return SafemShared(int(p.C), int(p.G), tile_pixels, tile_pixels / cluster);
  }
};

// Throws if the kernels do not support the sizes. danet/ops/fused_safem.py knows these limits, too.
void check_limits(const char* op, const SafemParams& p) {
  DANET_CHECK(
      p.C % 16 == 0 && p.C <= 512 && p.G <= 8 && p.C / p.G % kSafemPacket == 0, op,
      ": on CUDA devices, C must be a multiple of 16 and of 8 * groups and at most 512, and groups at most 8, got C = ",
      p.C, ", groups = ", p.G);
}

template <typename T>
const T* packed_weights(const char* op, const SafemParams& p, const Tensor& input, const Tensor& prepared) {
  const PackedSafem<T> sizes(nullptr, int(p.C), int(p.G));
  check_like(op, "prepared", prepared, input, {int64_t(sizes.end - sizes.depthwise)});
  DANET_CHECK(prepared.is_contiguous(), op, ": prepared must be contiguous");
  const void* data = prepared.const_data_ptr();
  DANET_CHECK(reinterpret_cast<uintptr_t>(data) % 16 == 0, op, ": prepared must be aligned to 16 bytes");
  return static_cast<const T*>(data);
}

// The arguments of a call; `up`, `weight`, `out` and `sums` are set by the caller.
template <typename T>
SafemCall<T> make_call(
    const char* op, const SafemParams& p, const SafemGrid& grid, const ImageView& input, const T* packed) {
  DANET_CHECK(
      fits_32_bits(sdc_params(p), input.pixel_stride), op,
      ": an image must have less than 2^31 elements, got H = ", p.H, ", W = ", p.W, " and ", input.pixel_stride,
      " elements per pixel");
  const int64_t packets = p.C / kSafemPacket;
  return {
      input,
      {nullptr, 0, 0},
      nullptr,
      nullptr,
      nullptr,
      PackedSafem<T>(packed, int(p.C), int(p.G)),
      grid.shared(p),
      SamplingGrid<float>(sdc_params(p)),
      gpu::Divisor(p.W),
      gpu::Divisor(grid.tiles),
      gpu::Divisor(packets),
      gpu::Divisor(round_up(int(p.C), kBlockK) / kSafemPacket),
      gpu::Divisor(p.G),
      int(p.C),
      int(p.H * p.W),
      grid.tile_pixels,
      grid.tile_pixels / grid.cluster,
      log2_of(grid.tile_pixels / grid.cluster),
      log2_lanes_per_item(packets),
      float(p.scale * double(p.C))};
}

template <typename Kernel, typename... Arguments>
void launch_tiles(
    const char* op, const SafemParams& p, const SafemGrid& grid, gpu::Stream stream, Kernel kernel,
    const Arguments&... arguments) {
  gpu::launch(
      op, kernel,
      {blocks_for(op, p.N * grid.tiles * grid.cluster, 1), unsigned(kSafemThreads), size_t(grid.shared_bytes(p)),
       stream, unsigned(grid.cluster)},
      arguments...);
}

// Calls body(T{}) with the type of the tensor's elements, a half type.
template <typename Body>
void with_half_type(const char* op, const Tensor& tensor, const Body& body) {
  const ScalarType type = tensor.scalar_type();
  DANET_CHECK(
      type == ScalarType::Half || type == ScalarType::BFloat16, op,
      ": dtype must be float16 or bfloat16 on CUDA devices");
  type == ScalarType::Half ? body(Half{}) : body(BFloat16{});
}

Tensor safem(
    const Tensor& input, const Tensor& prepared, const std::optional<Tensor>& up, const std::optional<Tensor>& weight,
    int64_t groups, double scale) {
  const SafemParams p = check_safem("safem", input, groups, scale);
  check_levels(p, input, up, weight);
  check_limits("safem", p);
  const DeviceGuard device_guard(input);
  const Image out(empty_image(input, input.sizes()));
  with_half_type("safem", input, [&](auto type) {
    using T = decltype(type);
    const T* packed = packed_weights<T>("safem", p, input, prepared);
    if (p.N == 0) return;
    const Image x = aligned_image<T>(input);
    const SafemGrid grid(p);
    SafemCall<T> call = make_call("safem", p, grid, x.view, packed);
    call.out = static_cast<T*>(out.view.data);
    std::optional<Image> deep;
    std::optional<Tensor> own_weight;
    if (up) {
      deep.emplace(aligned_image<T>(*up));
      own_weight = torch::stable::contiguous(*weight);
      if (reinterpret_cast<uintptr_t>(own_weight->const_data_ptr()) % 16 != 0)
        own_weight = torch::stable::clone(*own_weight);
      call.up = deep->view;
      call.weight = static_cast<const T*>(own_weight->const_data_ptr());
    }
    const auto kernel = grid.tile_pixels == 32 ? safem_kernel<T, 2> : safem_kernel<T, 1>;
    launch_tiles("safem", p, grid, device_guard.stream(), kernel, call);
  });
  return out.tensor;
}

Tensor acfa_weight(const Tensor& input, const Tensor& prepared, int64_t groups) {
  const SafemParams p = check_safem("acfa_weight", input, groups, 1);
  check_limits("acfa_weight", p);
  const DeviceGuard device_guard(input);
  const Tensor weight = torch::stable::empty({p.N, p.C}, input.scalar_type(), std::nullopt, input.device());
  with_half_type("acfa_weight", input, [&](auto type) {
    using T = decltype(type);
    const T* packed = packed_weights<T>("acfa_weight", p, input, prepared);
    if (p.N == 0) return;
    const Image x = aligned_image<T>(input);
    const SafemGrid grid(p);
    const int64_t parts = grid.tiles * grid.cluster;
    const Tensor sums = torch::stable::empty({p.N, parts, p.C}, ScalarType::Float, std::nullopt, input.device());
    SafemCall<T> call = make_call("acfa_weight", p, grid, x.view, packed);
    call.sums = static_cast<float*>(sums.mutable_data_ptr());
    const auto kernel = grid.tile_pixels == 32 ? sample_sums_kernel<T, 2> : sample_sums_kernel<T, 1>;
    launch_tiles("acfa_weight", p, grid, device_guard.stream(), kernel, call);
    const int64_t threads_of_sum = p.C / 4, sum_groups = std::max<int64_t>(1, kSafemThreads / threads_of_sum);
    const size_t shared = size_t(round_up(int(p.C), kBlockK) + 2 * p.C + sum_groups * p.C) * sizeof(float);
    gpu::launch(
        "acfa_weight", channel_weight_kernel<T>,
        {blocks_for("acfa_weight", p.N, 1), unsigned(kSafemThreads), shared, device_guard.stream()}, call.packed,
        call.sums, int(parts), int(p.C), float(p.H * p.W), static_cast<T*>(weight.mutable_data_ptr()));
  });
  return weight;
}

}  // namespace

DANET_CUDA_LIBRARY(library) {
  library.impl("safem", TORCH_BOX(&safem));
  library.impl("acfa_weight", TORCH_BOX(&acfa_weight));
}

}  // namespace danet
