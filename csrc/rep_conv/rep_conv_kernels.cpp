// The table of the CPU kernels of rep_conv.
#include "rep_conv_few.h"
#include "rep_conv_winograd.h"

namespace danet {
namespace {

template <typename T>
constexpr RepConvKernels kKernels = {
    kPanel,
    {kWinograd<WinogradStride1, T>, kWinograd<WinogradStride2, T>},
    few_outputs<T>,
    few_inputs_scratch,
    few_inputs<T, T>};

}  // namespace

const RepConvKernels& DANET_ISA::rep_conv_kernels(DType dtype) {
  return dtype == DType::kHalf ? kKernels<Half> : dtype == DType::kBFloat16 ? kKernels<BFloat16> : kKernels<float>;
}

}  // namespace danet
