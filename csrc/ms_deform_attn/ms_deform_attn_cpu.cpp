// Multi-scale deformable attention on the CPU, as torch calls it: limits, memory, threads. The kernels are in
// ms_deform_attn_kernels.cpp.
#include <cstring>
#include <limits>
#include <vector>

#include "../common/threads.h"
#include "ms_deform_attn_torch.h"

namespace danet {
namespace {

// The levels of a call; throws unless every level lies within the S pixels of value.
std::vector<MsLevel> read_levels(const MsDeformAttnParams& p, const Tensor& shapes, const Tensor& starts) {
  const Tensor sizes = torch::stable::contiguous(shapes), firsts = torch::stable::contiguous(starts);
  const int64_t* size = static_cast<const int64_t*>(sizes.const_data_ptr());
  const int64_t* first = static_cast<const int64_t*>(firsts.const_data_ptr());
  std::vector<MsLevel> levels;
  for (int64_t l = 0; l < p.L; ++l) {
    const int64_t H = size[2 * l], W = size[2 * l + 1], start = first[l], limit = int64_t(1) << 24;
    DANET_CHECK(
        H >= 0 && W >= 0 && H < limit && W < limit, "ms_deform_attn: spatial_shapes must be from 0 to ", limit - 1,
        ", got [", H, ", ", W, "]");
    DANET_CHECK(
        H * W == 0 || (start >= 0 && start <= p.S - H * W), "ms_deform_attn: level ", l,
        " must lie within the S = ", p.S, " pixels of value, got ", H, " * ", W, " pixels from ", start);
    levels.push_back({int32_t(H), int32_t(W), start});
  }
  return levels;
}

// Elementary operations of one query and head: preparing its taps, and gathering their corners by vectors.
int64_t head_cost(const MsDeformAttnParams& p) { return p.L * p.P * (4 + p.D / 2); }

Tensor ms_deform_attn(
    const Tensor& value, const Tensor& locations, const Tensor& weights, const Tensor& shapes, const Tensor& starts,
    bool softmax) {
  MsDeformAttnParams p = check_ms_deform_attn(value, locations, weights, shapes, starts, softmax);
  const std::vector<MsLevel> levels = read_levels(p, shapes, starts);
  const HeadImages images(value);
  const QueryRows points(locations), factors(weights);
  p.head_stride = images.tensor.stride(2);
  const QueryRows out(empty_like(value, {p.N, p.Q, p.M * p.D}, value.scalar_type()));
  const auto forward =
      DANET_KERNELS(ms_deform_attn_kernels, dtype_of(value)).forward[locations.scalar_type() != value.scalar_type()];
  parallel_for(p.N * p.Q, p.M * head_cost(p), [&](int64_t begin, int64_t end) {
    forward(p, levels.data(), images.view, points.view, factors.view, out.view, begin, end);
  });
  return out.tensor;
}

// The number of bands into which the rows of every level are divided, so that each thread gets about the same work.
// Each band of a head prepares all taps of the head again, which takes about a third of the time (measured on AVX2).
int64_t choose_bands(int64_t heads, int64_t threads) {
  int64_t best = 1;
  double best_time = std::numeric_limits<double>::max();
  for (int64_t bands = 1; heads > 0 && bands <= std::max<int64_t>(1, threads); ++bands) {
    const double rounds = double((heads * bands + threads - 1) / threads);
    const double time = rounds * (0.3 + 0.7 / double(bands));
    if (time < 0.99 * best_time) best = bands, best_time = time;
  }
  return best;
}

// The result is always deterministic: only one thread writes to a given pixel and head of grad_value, and it adds the
// contributions in the order of the queries and taps.
std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(
    const Tensor& grad_output, const Tensor& value, const Tensor& locations, const Tensor& weights,
    const Tensor& shapes, const Tensor& starts, bool softmax, bool /* deterministic */) {
  MsDeformAttnParams p = check_ms_deform_attn(value, locations, weights, shapes, starts, softmax);
  check_grad_output(p, grad_output, value);
  const std::vector<MsLevel> levels = read_levels(p, shapes, starts);
  const HeadImages images(value);
  const QueryRows grad_out(grad_output), points(locations), factors(weights);
  p.head_stride = images.tensor.stride(2);
  const HeadImages grad_value(empty_sums(p, value));
  const QueryRows grad_points(empty_like(locations, locations.sizes(), locations.scalar_type()));
  const QueryRows grad_factors(empty_like(weights, weights.sizes(), weights.scalar_type()));
  // Clear grad_value.
  const int64_t pixel_bytes = p.M * p.D * int64_t(grad_value.tensor.element_size());
  parallel_for(p.N * p.S, p.M * p.D / 8 + 1, [&](int64_t begin, int64_t end) {
    std::memset(static_cast<char*>(grad_value.view.data) + begin * pixel_bytes, 0, size_t((end - begin) * pixel_bytes));
  });
  // Fill it: every thread takes some bands of some heads. The gradients of the other tensors are shared out with them.
  const auto backward =
      DANET_KERNELS(ms_deform_attn_kernels, dtype_of(value)).backward[locations.scalar_type() != value.scalar_type()];
  const int64_t heads = p.N * p.M, cost = 3 * p.Q * head_cost(p);
  const int64_t threads =
      std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), heads * cost / kWorkPerThread));
  const int64_t bands = choose_bands(heads, threads);
  parallel_for(heads * bands, cost, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t head = index / bands, band = index % bands;
      backward(
          p, levels.data(), grad_out.view, images.view, points.view, factors.view, grad_value.view, grad_points.view,
          grad_factors.view, head / p.M, head % p.M, p.Q * band / bands, p.Q * (band + 1) / bands, band, bands);
    }
  });
  return {round_sums(grad_value.tensor, value), grad_points.tensor, grad_factors.tensor};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(danet, CPU, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&ms_deform_attn));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&ms_deform_attn_backward));
}

}  // namespace danet
