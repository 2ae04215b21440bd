// The table of the CPU kernels of multi-scale deformable attention. ms_deform_attn_forward.h and
// ms_deform_attn_backward.h have the kernels themselves.
#include "ms_deform_attn_backward.h"
#include "ms_deform_attn_forward.h"

namespace danet {
namespace {

template <typename T>
constexpr MsDeformAttnKernels kKernels = {
    {forward_queries<T, T>, forward_queries<T, Compute<T>>}, {backward_head<T, T>, backward_head<T, Compute<T>>}};

}  // namespace

const MsDeformAttnKernels& DANET_ISA::ms_deform_attn_kernels(DType dtype) { return DANET_PICK_TYPE(kKernels, dtype); }

}  // namespace danet
