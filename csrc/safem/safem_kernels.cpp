// The CPU kernels of SaFEM in float32.
#include "../common/matrix.h"
#include "safem_block.h"

namespace danet {
namespace {

// The weights are stored as panels (matrix.h).
template <>
struct Layer<float> {
  static constexpr bool kReadsPadding = false;

  static int64_t padded(int64_t columns) { return panel_count(columns) * kPanel; }
  static int64_t padded_rows(int64_t rows) { return rows; }
  static int64_t weight_size(int64_t columns, int64_t C) { return padded(columns) * C; }
  static void prepare(const float* weight, int64_t columns, int64_t C, float* prepared) {
    pack_panels(weight, columns, C, prepared);
  }

  template <typename Activation>
  static DANET_INLINE void apply(
      const float* rows, int64_t count, int64_t stride, const float* weight, const float* bias, int64_t C,
      int64_t columns, float* out, int64_t out_stride, const Activation& activation) {
    for (int64_t panel = 0; panel < panel_count(columns);
         ++panel, weight += C * kPanel, bias += kPanel, out += kPanel) {
      const F low_bias = load(bias), high_bias = load(bias + L);
      // Multiply the rows with one panel, and prefetch the next one meanwhile.
      const float* next = weight + C * kPanel;
      const auto prefetch_next = [&](int64_t c) __attribute__((always_inline)) {
        for (int line = 0; line < kPanel; line += 16) __builtin_prefetch(next + c * kPanel + line, 0, 2);
      };
      multiply_rows(
          rows, count, stride, weight, C, prefetch_next,
          [&](int64_t row, F low, F high) __attribute__((always_inline)) {
            store(out + row * out_stride, activation(low + low_bias));
            store(out + row * out_stride + L, activation(high + high_bias));
          });
    }
  }
};

}  // namespace

const SafemKernels& DANET_ISA::safem_kernels(DType /* dtype */) { return kKernels<float>; }

}  // namespace danet
