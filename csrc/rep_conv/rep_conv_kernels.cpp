// The CPU kernels of rep_conv.
#include "rep_conv_few.h"
#include "rep_conv_winograd.h"

namespace danet {
namespace {

template <typename T>
constexpr RepConvKernels kKernels = {
    kPanel, {kWinograd<Stride1, T>, kWinograd<Stride2, T>}, few_outputs<T>, few_inputs<T>};

}  // namespace

const RepConvKernels& DANET_ISA::rep_conv_kernels(DType dtype) {
  return dtype == DType::kHalf ? kKernels<Half> : dtype == DType::kBFloat16 ? kKernels<BFloat16> : kKernels<float>;
}

}  // namespace danet
