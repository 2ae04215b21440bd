// The CPU kernels of SaFEM in bfloat16 on the matrix unit.
#include "../common/amx.h"
#include "safem_pairs.h"

namespace danet {
namespace {

// The weights are stored as the right operands of TileBlock: for each panel of kBlockColumns columns, all depths.
template <>
struct Layer<BFloat16> {
  static constexpr bool kReadsPadding = true;

  static int64_t depth(int64_t C) { return (C + kTileDepth - 1) / kTileDepth; }
  static int64_t panels(int64_t columns) { return (columns + kBlockColumns - 1) / kBlockColumns; }
  static int64_t padded(int64_t columns) { return panels(columns) * kBlockColumns; }
  static int64_t padded_rows(int64_t rows) { return (rows + kBlockRows - 1) / kBlockRows * kBlockRows; }
  static int64_t weight_size(int64_t columns, int64_t C) { return panels(columns) * depth(C) * kRightSize / 2; }

  static void prepare(const float* weight, int64_t columns, int64_t C, float* prepared) {
    BFloat16* right = reinterpret_cast<BFloat16*>(prepared);
    for (int64_t panel = 0; panel < panels(columns); ++panel)
      for (int64_t d = 0; d < depth(C); ++d, right += kRightSize)
        pack_right(right, [&](int64_t row, int64_t lane) {
          const int64_t c = d * kTileDepth + row, column = panel * kBlockColumns + lane;
          return from_compute<BFloat16>(c < C && column < columns ? weight[column * C + c] : 0);
        });
  }

  // gelu(x) = x * Phi(x), with Phi the cumulative normal distribution. Phi(x) - 0.5 is an odd minimax polynomial up to
  // |x| = 4, and constant beyond. The error is below 1.3e-4 for |x| < 95, less than half of the rounding error of
  // results from 0.125 on. The exact form takes twice as long.
  static DANET_INLINE F gelu(F x) {
    const F bounded = clamp<float>(x, -4, 4), square = bounded * bounded;
    F p = square * -1.2191822e-9f + 1.00376219e-7f;
    p = p * square - 3.59845194e-6f;
    p = p * square + 7.46639707e-5f;
    p = p * square - 1.01004506e-3f;
    p = p * square + 9.54216439e-3f;
    p = p * square - 6.60082325e-2f;
    p = p * square + 3.98792535e-1f;
    return x * (bounded * p + 0.5f);
  }

  template <typename Out, typename Activation>
  static DANET_INLINE void apply(
      const BFloat16* rows, int64_t count, int64_t stride, const float* weight, const float* bias, int64_t C,
      int64_t columns, Out* out, int64_t out_stride, const Activation& activation) {
    const BFloat16* right = reinterpret_cast<const BFloat16*>(weight);
    alignas(64) float sums[kBlockRows * kBlockColumns];
    TileBlock tiles;
    for (int64_t panel = 0; panel < panels(columns); ++panel, right += depth(C) * kRightSize, bias += kBlockColumns)
      for (int64_t first = 0; first < count; first += kBlockRows) {
        // Multiply a block of rows with one panel
        tiles.clear();
        for (int64_t d = 0; d < depth(C); ++d)
          tiles.multiply_add(rows + first * stride + d * kTileDepth, stride, right + d * kRightSize);
        tiles.store(sums);
        // Add the bias, apply the activation, and write back
        const int64_t block_rows = count - first < kBlockRows ? count - first : kBlockRows;
        for (int64_t row = 0; row < block_rows; ++row)
          for (int64_t lane = 0; lane < kBlockColumns; lane += L)
            store(
                out + (first + row) * out_stride + panel * kBlockColumns + lane,
                activation(load(sums + row * kBlockColumns + lane) + load(bias + lane)));
      }
  }
};

}  // namespace

const SafemKernels& DANET_ISA::safem_tile_kernels() { return kKernels<BFloat16>; }

}  // namespace danet
