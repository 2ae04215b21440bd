// Multi-scale deformable attention on CUDA devices, as torch calls it: choice of the kernel, launch, memory. The
// kernels are in ms_deform_attn_forward.cuh and ms_deform_attn_backward.cuh.
#include "../common/device.h"
#include "ms_deform_attn_backward.cuh"
#include "ms_deform_attn_torch.h"

namespace danet {
namespace {

// Shared memory of a block in bytes, enough for the forward and the backward kernel.
template <typename A>
int64_t shared_bytes(const MsDeformAttnParams& p, int items) {
  const int64_t taps = p.L * p.P * int64_t(5 * sizeof(A) + sizeof(uint32_t));
  return p.L * int64_t(sizeof(MsLevel)) + items * (taps + int64_t(sizeof(SoftmaxFactors<A>)));
}

// The number of items per block: fewer if a block's taps exceed the shared memory, or if there are too few blocks for
// the multiprocessors.
template <typename A>
int choose_items(const MsDeformAttnParams& p, int64_t num_items) {
  int items = 32;
  while (items > 1 && (shared_bytes<A>(p, items) > gpu::kDefaultSharedBytes ||
                       (items > 8 && num_items / items < 2 * gpu::multiprocessor_count())))
    items /= 2;
  return items;
}

// A call whose arguments are checked, and the tensors that its views need.
struct MsCall {
  HeadImages value;
  QueryRows locations, weights;
  Tensor shapes, starts;
  MsInputs in{};

  MsCall(
      const Tensor& value, const Tensor& locations, const Tensor& weights, const Tensor& shapes, const Tensor& starts,
      bool softmax)
      : value(value), locations(locations), weights(weights), shapes(torch::stable::contiguous(shapes)),
        starts(torch::stable::contiguous(starts)) {
    in.p = check_ms_deform_attn(value, locations, weights, shapes, starts, softmax);
    in.p.head_stride = this->value.tensor.stride(2);
    in.shapes = static_cast<const int64_t*>(this->shapes.const_data_ptr());
    in.starts = static_cast<const int64_t*>(this->starts.const_data_ptr());
    in.value = this->value.view, in.locations = this->locations.view, in.weights = this->weights.view;
  }

  int64_t num_items() const { return in.p.N * in.p.Q * in.p.M; }
};

// Whether the channels of every head are whole, aligned packets of 16 bytes.
template <typename T>
bool heads_fit_packets(const MsInputs& in, std::initializer_list<ImageView> views) {
  return in.p.head_stride % gpu::Packet<T>::kSize == 0 && fits_packets<T>(in.p.D, views);
}

// Calls body(s, index, packet_size). They carry the template arguments of the kernels: the dtype of locations and
// weights, the index type, and the number of channels per packet. Common cases get kernels with 32-bit indices and
// packets of 16 bytes (not for float64).
template <typename T, typename Body>
void dispatch_points(const MsCall& call, bool packets_fit, const Body& body) {
  const MsDeformAttnParams& p = call.in.p;
  const int64_t limit = int64_t(1) << 31, stride = std::max(call.in.value.pixel_stride, p.M * p.D);
  // A cell outside may begin a row before the level.
  const bool fits_int32 = call.num_items() * p.L * p.P < limit && (2 * p.S + 4) * stride < limit;
  const auto with_points = [&](auto s) {
    if constexpr (sizeof(T) < 8)
      if (packets_fit && fits_int32) return body(s, int32_t{}, Constant<gpu::Packet<T>::kSize>{});
    body(s, int64_t{}, Constant<1>{});
  };
  if constexpr (sizeof(T) == 2)
    if (call.locations.tensor.scalar_type() == ScalarType::Float) return with_points(float{});
  with_points(T{});
}

Tensor ms_deform_attn(
    const Tensor& value, const Tensor& locations, const Tensor& weights, const Tensor& shapes, const Tensor& starts,
    bool softmax) {
  const MsCall call(value, locations, weights, shapes, starts, softmax);
  const MsDeformAttnParams& p = call.in.p;
  const DeviceGuard device_guard(value);
  Tensor out = empty_like(value, {p.N, p.Q, p.M * p.D}, value.scalar_type());
  if (call.num_items() == 0) return out;
  with_type(value, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    const int items = choose_items<A>(p, call.num_items());
    const bool packets_fit = heads_fit_packets<T>(call.in, {call.in.value});
    dispatch_points<T>(call, packets_fit, [&](auto s, auto index, auto packet_size) {
      gpu::launch(
          "ms_deform_attn", ms_forward_kernel<T, decltype(s), decltype(index), decltype(packet_size)::value>,
          {blocks_for("ms_deform_attn", call.num_items(), items), kThreads, size_t(shared_bytes<A>(p, items)),
           device_guard.stream()},
          call.in, static_cast<T*>(out.mutable_data_ptr()), call.num_items(), items);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(
    const Tensor& grad_output, const Tensor& value, const Tensor& locations, const Tensor& weights,
    const Tensor& shapes, const Tensor& starts, bool softmax, bool deterministic) {
  const MsCall call(value, locations, weights, shapes, starts, softmax);
  const MsDeformAttnParams& p = call.in.p;
  check_grad_output(p, grad_output, value);
  const DeviceGuard device_guard(value);
  const QueryRows grad_out(grad_output);
  Tensor grad_value = empty_sums(p, value);
  torch::stable::zero_(grad_value);
  Tensor grad_locations = empty_like(locations, locations.sizes(), locations.scalar_type());
  Tensor grad_weights = empty_like(weights, weights.sizes(), weights.scalar_type());
  if (call.num_items() > 0)
    with_type(value, [&](auto type) {
      using T = decltype(type);
      using A = Compute<T>;
      A* sums = static_cast<A*>(grad_value.mutable_data_ptr());
      const int items = choose_items<A>(p, call.num_items());
      const bool packets_fit = heads_fit_packets<T>(call.in, {call.in.value, grad_out.view});
      Tensor normalized =
          empty_like(value, {deterministic ? call.num_items() * p.L * p.P : 0}, grad_value.scalar_type());
      dispatch_points<T>(call, packets_fit, [&](auto s, auto index, auto packet_size) {
        using S = decltype(s);
        using Index = decltype(index);
        constexpr int kPacketSize = decltype(packet_size)::value;
        const int lanes = 1 << log2_lanes_per_item(p.D / kPacketSize);
        gpu::launch(
            "ms_deform_attn",
            deterministic ? ms_backward_kernel<T, S, Index, kPacketSize, /*kScatter=*/false>
                          : ms_backward_kernel<T, S, Index, kPacketSize, /*kScatter=*/true>,
            {blocks_for("ms_deform_attn", call.num_items(), items), kThreads, size_t(shared_bytes<A>(p, items)),
             device_guard.stream()},
            call.in, grad_out.view, sums, static_cast<S*>(grad_locations.mutable_data_ptr()),
            static_cast<S*>(grad_weights.mutable_data_ptr()), static_cast<A*>(normalized.mutable_data_ptr()),
            call.num_items(), items, lanes);
        if (!deterministic || p.S == 0) return;
        // Deterministic: a second kernel sums grad_value in a fixed order.
        const int64_t warps = p.N * p.M * ((p.S + kPixelsPerWarp - 1) / kPixelsPerWarp);
        gpu::launch(
            "ms_deform_attn", ms_backward_in_order<T, S>,
            {blocks_for("ms_deform_attn", warps, 1), 32, 0, device_guard.stream()}, call.in, grad_out.view,
            static_cast<const A*>(normalized.const_data_ptr()), sums);
      });
    });
  return {round_sums(grad_value, value), grad_locations, grad_weights};
}

}  // namespace

DANET_CUDA_LIBRARY(library) {
  library.impl("ms_deform_attn", TORCH_BOX(&ms_deform_attn));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&ms_deform_attn_backward));
}

}  // namespace danet
