// The CPU kernels of softmax_gate, one pixel at a time, vectorized over its channels. The exponentials stay in the L1
// cache.
#include "softmax_gate.h"
#include "softmax_rows.h"

namespace danet {
namespace {

template <typename T>
int64_t scratch_size(const SoftmaxGateParams& p) {
  return p.C * int64_t(sizeof(Compute<T>)) + kVectorBytes;
}

template <typename T>
void forward(
    const SoftmaxGateParams& p, ImageView input, ImageView logits, ImageView out, int64_t begin, int64_t end,
    char* scratch) {
  using A = Compute<T>;
  A* exps = reinterpret_cast<A*>(scratch);
  for (int64_t row = begin; row < end; ++row) {
    int64_t n = row / p.P, i = row % p.P;
    const T* x = input.pixel<T>(n, i);
    T* result = out.pixel<T>(n, i);
    // Compute the exponentials and their sum, then scale the input
    const A factor = A(p.C) / exponentials(logits.pixel<T>(n, i), exps, p.C);
    for_vectors_of<A>(p.C, [&](int64_t c, int count) {
      store_channels(result + c, load_channels(x + c, count) * (load(exps + c) * factor), count);
    });
  }
}

template <typename T>
void backward(
    const SoftmaxGateParams& p, ImageView grad_output, ImageView input, ImageView logits, ImageView grad_input,
    ImageView grad_logits, int64_t begin, int64_t end, char* scratch) {
  using A = Compute<T>;
  A* exps = reinterpret_cast<A*>(scratch);
  for (int64_t row = begin; row < end; ++row) {
    int64_t n = row / p.P, i = row % p.P;
    const T *g = grad_output.pixel<T>(n, i), *x = input.pixel<T>(n, i);
    T *to_input = grad_input.pixel<T>(n, i), *to_logits = grad_logits.pixel<T>(n, i);
    // Compute the exponentials and their sum, then the sum of s * g * x
    const A inverse = 1 / exponentials(logits.pixel<T>(n, i), exps, p.C);
    Vec<A> products{};
    for_vectors_of<A>(p.C, [&](int64_t c, int count) {
      products += (load(exps + c) * inverse) * (load_channels(g + c, count) * load_channels(x + c, count));
    });
    // Write both gradients
    const A mean = sum_lanes<A>(products), factor = A(p.C) * inverse;
    for_vectors_of<A>(p.C, [&](int64_t c, int count) {
      Vec<A> grad = load_channels(g + c, count), weight = load(exps + c) * factor;
      store_channels(to_input + c, weight * grad, count);
      store_channels(to_logits + c, weight * (grad * load_channels(x + c, count) - mean), count);
    });
  }
}

template <typename T>
constexpr SoftmaxGateKernels kKernels = {scratch_size<T>, forward<T>, backward<T>};

}  // namespace

const SoftmaxGateKernels& DANET_ISA::softmax_gate_kernels(DType dtype) { return DANET_PICK_TYPE(kKernels, dtype); }

}  // namespace danet
