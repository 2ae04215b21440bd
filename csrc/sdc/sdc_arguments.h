// The checked parameters of a call, from the arguments of an operator that torch calls, on every device.
#pragma once

#include "../common/tensor.h"
#include "sdc_check.h"
#include "sdc_schema.h"

namespace danet {
namespace {

// The options of a call, from the operator's arguments.
inline SdcOptions sdc_options(const Tensor& input DANET_SDC_PARAMETERS) {
  SdcOptions options;
  options.N = input.size(0), options.C = input.size(1), options.H = input.size(2), options.W = input.size(3);
#define ASSIGN(type, schema_type, name, member) options.member = name;
  DANET_SDC_OPTIONS(ASSIGN)
#undef ASSIGN
  return options;
}

// The parameters of a call of sdc, dcnv3 or deform_im2col (layout), whose shapes, dtypes and devices are checked as
// well.
template <SdcLayout layout>
SdcParams check_call(const Tensor& input, const Tensor& offset, const Tensor& mask DANET_SDC_PARAMETERS) {
  const char* op = layout == SdcLayout::kSdc ? "sdc" : layout == SdcLayout::kDcnv3 ? "dcnv3" : "deform_im2col";
  check_input(op, input);
  const SdcParams p = check_sdc<std::runtime_error>(op, sdc_options(input DANET_SDC_ARGUMENTS), layout);
  check_like(op, "offset", offset, input, {p.N, 2 * p.G * p.K, p.H_out, p.W_out});
  check_like(op, "mask", mask, input, {p.N, p.G * p.K, p.H_out, p.W_out});
  DANET_CHECK(layout != SdcLayout::kColumns || !p.softmax, "deform_im2col: softmax must be false");
  return p;
}

}  // namespace
}  // namespace danet
