// Checks the arguments of a call of SaFEM on any device, and returns its sizes. The kernels rely on these checks for
// memory safety.
#pragma once

#include <optional>

#include "../common/tensor.h"
#include "../sdc/sdc_check.h"
#include "safem.h"

namespace danet {

template <typename T>  // Tensor or Activation
SafemParams check_safem(const char* op, const T& input, int64_t groups, double scale) {
  check_input(op, input);
  const SafemParams p{input.size(0), input.size(1), input.size(2), input.size(3), groups, scale};
  // The kernels compute coordinates in float32.
  DANET_CHECK(p.H <= 1 << 24 && p.W <= 1 << 24, op, ": an image must have at most 2^24 rows and columns");
  check_sdc_limits<std::runtime_error>(op, check_sdc<std::runtime_error>(op, sdc_options(p), SdcLayout::kSdc), p.C);
  return p;
}

// Checks the arguments with which safem combines two levels; both are given, or neither.
template <typename T>
void check_levels(const SafemParams& p, const T& input, const std::optional<T>& up, const std::optional<T>& weight) {
  DANET_CHECK(up.has_value() == weight.has_value(), "safem: up and weight must be given together");
  if (!up) return;
  check_like("safem", "up", *up, input, {p.N, 4 * p.C, (p.H + 1) / 2, (p.W + 1) / 2});
  check_like("safem", "weight", *weight, input, {p.N, p.C});
}

}  // namespace danet
