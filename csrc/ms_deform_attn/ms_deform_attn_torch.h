// Multi-scale deformable attention as torch calls it, on every device: checks of the arguments and views of the
// tensors. ms_deform_attn_cpu.cpp and ms_deform_attn_cuda.cu use it.
#pragma once

#include <tuple>

#include "../common/tensor.h"
#include "../sdc/sdc.h"
#include "ms_deform_attn.h"

namespace danet {
namespace {

// A tensor [N, Q, ...] whose elements of one query are contiguous, with a view in which a query is a pixel. Copies the
// tensor only if it does not have that layout.
struct QueryRows {
  Tensor tensor;
  ImageView view;

  explicit QueryRows(const Tensor& t) : tensor(t) {
    if (!rows_are_dense()) tensor = torch::stable::contiguous(t);
    view = {const_cast<void*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1)};
  }

 private:
  bool rows_are_dense() const {
    int64_t expected = 1;
    for (int64_t axis = tensor.dim() - 1; axis >= 2; --axis) {
      if (tensor.size(axis) > 1 && tensor.stride(axis) != expected) return false;
      expected *= tensor.size(axis);
    }
    return true;
  }
};

// value [N, S, M, D], whose channels of one head are contiguous, with a view in which a pixel is one of the S pixels.
struct HeadImages {
  Tensor tensor;
  ImageView view;

  explicit HeadImages(const Tensor& t) : tensor(t) {
    if (t.size(3) > 1 && t.stride(3) != 1) tensor = torch::stable::contiguous(t);
    view = {const_cast<void*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1)};
  }
};

// The parameters of a call, whose shapes, dtypes and devices are checked; head_stride is not set.
inline MsDeformAttnParams check_ms_deform_attn(
    const Tensor& value, const Tensor& locations, const Tensor& weights, const Tensor& shapes, const Tensor& starts,
    bool softmax) {
  const char* op = "ms_deform_attn";
  DANET_CHECK(is_here(value) && value.dim() == 4, op, ": value must be [N, S, M, D] on the operator's device");
  const DType dtype = dtype_of(value);
  DANET_CHECK(locations.dim() == 6 && locations.size(5) == 2, op, ": sampling_locations must be [N, Q, M, L, P, 2]");
  const MsDeformAttnParams p = {value.size(0),     value.size(1),     value.size(2),
                                value.size(3),     locations.size(1), locations.size(3),
                                locations.size(4), softmax,           0};
  DANET_CHECK(p.M >= 1 && p.D >= 1 && p.L >= 1 && p.P >= 1, op, ": M, D, L and P must be >= 1");
  const auto check = [&](const char* name, const Tensor& t, IntHeaderOnlyArrayRef sizes) {
    DANET_CHECK(
        is_here(t) && t.get_device_index() == value.get_device_index(), op, ": ", name, " must be on value's device");
    DANET_CHECK(
        t.dim() == int64_t(sizes.size()) && std::equal(sizes.begin(), sizes.end(), t.sizes().begin()), op, ": ", name,
        " has the wrong shape");
  };
  check("sampling_locations", locations, {p.N, p.Q, p.M, p.L, p.P, 2});
  check("attention_weights", weights, {p.N, p.Q, p.M, p.L, p.P});
  check("spatial_shapes", shapes, {p.L, 2});
  check("level_start_index", starts, {p.L});
  DANET_CHECK(
      shapes.scalar_type() == ScalarType::Long && starts.scalar_type() == ScalarType::Long, op,
      ": spatial_shapes and level_start_index must be int64");
  const DType points = dtype_of(locations);
  DANET_CHECK(
      weights.scalar_type() == locations.scalar_type() &&
          (points == dtype || (points == DType::kFloat && dtype != DType::kDouble)),
      op, ": sampling_locations and attention_weights must both have value's dtype, or both float32");
  DANET_CHECK(p.L * p.P <= kMaxTaps, op, ": L * P must be at most ", kMaxTaps, ", got ", p.L, " * ", p.P);
  DANET_CHECK(p.S < int64_t(1) << 31, op, ": value must have fewer than 2^31 pixels, got ", p.S);
  return p;
}

inline void check_grad_output(const MsDeformAttnParams& p, const Tensor& grad_output, const Tensor& value) {
  check_like("ms_deform_attn", "grad_output", grad_output, value, {p.N, p.Q, p.M * p.D});
}

inline Tensor empty_like(const Tensor& like, IntHeaderOnlyArrayRef sizes, ScalarType dtype) {
  return torch::stable::empty(sizes, dtype, std::nullopt, like.device(), std::nullopt, std::nullopt);
}

// The sums for grad_value [N, S, M, D], in the compute dtype; not initialized.
inline Tensor empty_sums(const MsDeformAttnParams& p, const Tensor& value) {
  const bool is_double = value.scalar_type() == ScalarType::Double;
  return empty_like(value, {p.N, p.S, p.M, p.D}, is_double ? ScalarType::Double : ScalarType::Float);
}

inline Tensor round_sums(const Tensor& sums, const Tensor& value) {
  return sums.scalar_type() == value.scalar_type() ? sums : torch::stable::to(sums, value.scalar_type());
}

}  // namespace
}  // namespace danet
