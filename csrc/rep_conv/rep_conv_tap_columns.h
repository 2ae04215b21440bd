// rep_conv on the matrix unit with a float32 weight and few output channels, as in the layers that predict scores and
// boxes.
//
// The right operand of a matrix product has a column for every output channel. With few of them, most columns would be
// empty. The taps of the kernel therefore become columns as well. For output channel o and tap (i, j):
//
//   P[o, i, j][y, x] = sum_c weight[o, c, i, j] * input[c, y, x]
//   out[o, y, x] = bias[o] + sum_{i, j} P[o, i, j][y - 1 + i, x - 1 + j]
//
// One output channel has nine columns, and every pixel is multiplied once instead of nine times. For more channels,
// nine columns each would not fit into a tile of 16 columns. Then only the taps of a row are columns, the sum over the
// rows i is a part of the product, and every pixel is multiplied three times.
//
// A float32 weight is the sum of two bfloat16 values. The products with both are added to the same column.
#pragma once

#include <algorithm>
#include <optional>

#include "../common/lanes.h"
#include "../common/vec_math.h"
#include "rep_conv_tile_blocks.h"

namespace danet {
namespace {

constexpr int64_t kTapColumnOutputs = 4;
static_assert(kTapColumnOutputs == 4, "TapSum sums four channels at once");
static_assert(3 * kTapColumnOutputs <= kNarrowColumns && 9 <= kNarrowColumns, "the columns must fit into a tile");

// Whether the taps are columns.
bool has_tap_columns(const RepConvParams& p) {
  return p.has_float32_weight && p.kernel_size == 3 && p.stride == 1 && p.C_out <= kTapColumnOutputs;
}

// The rows of the kernel whose taps are columns of the same product, and the products of a tile of channels.
int64_t rows_in_columns(int64_t C_out) { return C_out == 1 ? 3 : 1; }
int64_t products_per_tile(int64_t C_out) { return 3 / rows_in_columns(C_out); }

int64_t tap_column_weight_size(const RepConvParams& p) {
  return products_per_tile(p.C_out) * channel_tiles(p) * 2 * kNarrowRightSize;
}

// Lays out the weight [C_out, C, 3, 3] in the order of the products: for each tile of channels, the weights rounded to
// bfloat16, then their rounding errors.
void prepare_tap_columns(const RepConvParams& p, const float* weight, BFloat16* prepared) {
  const int64_t columns = 3 * rows_in_columns(p.C_out) * p.C_out;
  for (int64_t i = 0; i < products_per_tile(p.C_out); ++i)
    for (int64_t tile = 0; tile < channel_tiles(p); ++tile)
      for (int part = 0; part < 2; ++part, prepared += kNarrowRightSize) {
        const auto value_at = [&](int64_t depth, int64_t column) {
          const int64_t c = tile * kTileDepth + depth, o = column % p.C_out, tap = 3 * i + column / p.C_out;
          if (c >= p.C || column >= columns) return BFloat16{0};
          const float value = weight[(o * p.C + c) * 9 + tap];
          const BFloat16 rounded = from_compute<BFloat16>(value);
          return part == 0 ? rounded : from_compute<BFloat16>(value - to_compute(rounded));
        };
        pack_right(prepared, value_at, kNarrowColumns);
      }
}

// The number of pixels that are multiplied for this number of output rows, and of their blocks. The first pixel is the
// upper left neighbor of the first output pixel, or its left neighbor if the products include the sum over the rows.
int64_t multiplied_pixels(const RepConvParams& p, int64_t rows) {
  return (rows + rows_in_columns(p.C_out) - 1) * (p.W + 1) + 1;
}
int64_t tap_column_blocks(const RepConvParams& p, int64_t rows) {
  return (multiplied_pixels(p, rows) + kNarrowRows - 1) / kNarrowRows;
}

int64_t tap_column_scratch_size(const RepConvParams& p, int64_t rows) {
  return tap_column_blocks(p, rows) * kNarrowRows * kNarrowColumns * int64_t(sizeof(float)) +
         PaddedInput(p, rows).size() * int64_t(sizeof(BFloat16));
}

// Makes the results from the products. kHasOneOutput: C_out is 1.
template <bool kHasOneOutput>
class TapSum {
 public:
  TapSum(const RepConvParams& p, const float* bias, const float* products, int64_t pitch)
      : products_(products), row_(pitch * kNarrowColumns), C_out_(p.C_out), low_(p.relu ? 0.0f : -__builtin_inff()) {
    if (bias != nullptr) std::memcpy(bias_, bias, size_t(p.C_out) * sizeof(float));
  }

  // Writes the results of pixel i of the padded output.
  DANET_INLINE void write(int64_t i, float* to) const {
    const float* from = products_ + i * kNarrowColumns;
    if constexpr (kHasOneOutput) {
      float sums[3];
#pragma GCC unroll 3
      for (int row = 0; row < 3; ++row, from += row_)
        sums[row] = from[3 * row] + from[kNarrowColumns + 3 * row + 1] + from[2 * kNarrowColumns + 3 * row + 2];
      *to = clamp_min(sums[0] + sums[1] + sums[2] + bias_[0], low_);
    } else {
      // Four channels at once: those that do not exist read other columns, and are not stored.
      using V = Vec4<float>;
      const V left = bits_as<V>(from), center = bits_as<V>(from + kNarrowColumns + C_out_);
      const V right = bits_as<V>(from + 2 * (kNarrowColumns + C_out_));
      const V value = clamp_min(left + center + right + bits_as<V>(bias_), low_);
      if (C_out_ == 4) {
        std::memcpy(to, &value, sizeof value);
      } else {
        for (int64_t o = 0; o < C_out_; ++o) to[o] = value[o];
      }
    }
  }

 private:
  const float* const products_;
  const int64_t row_, C_out_;
  const float low_;  // the minimum of the results: 0 for a ReLU
  float bias_[4] = {};
};

// The pixels of the padded output, in their order. It has rows of `pitch` pixels, of which the first W are stored.
class OutputPixels {
 public:
  OutputPixels(const RepConvParams& p, int64_t pitch, const TileImage& out, float* first)
      : W_(p.W), gap_(pitch - p.W), step_(out.pixel_stride), row_step_((out.row_pixels - p.W) * out.pixel_stride),
        to_(first) {}

  // Writes the pixels before `end` that are not written yet.
  template <typename Sum>
  DANET_INLINE void write_until(int64_t end, const Sum& sum) {
    while (next_ < end) {
      const int64_t run_end = std::min(end, next_ + W_ - x_);
      x_ += run_end - next_;
      for (; next_ < run_end; ++next_, to_ += step_) sum.write(next_, to_);
      if (x_ < W_) continue;
      x_ = 0;
      next_ += gap_;
      to_ += row_step_;
    }
  }

 private:
  const int64_t W_, gap_, step_, row_step_;
  int64_t next_ = 0, x_ = 0;
  float* to_;
};

// Computes the output rows [begin, end) of image n.
template <bool kHasOneOutput>
void multiply_tap_columns(
    const RepConvParams& p, const TileImage& input, const BFloat16* prepared, const float* bias, const TileImage& out,
    int64_t n, int64_t begin, int64_t end, char* scratch) {
  const int64_t rows = end - begin, blocks = tap_column_blocks(p, rows);
  float* const products = reinterpret_cast<float*>(scratch);
  BFloat16* const copy = reinterpret_cast<BFloat16*>(products + blocks * kNarrowRows * kNarrowColumns);
  const PaddedInput padded(p, rows);
  const bool is_direct = reads_directly(p, input);
  std::optional<InputCopy> input_copy;
  if (!is_direct) input_copy.emplace(p, input, n, begin, padded, copy);
  const LeftOperands left = is_direct ? LeftOperands(p, input, n, begin, rows) : LeftOperands(p, padded, copy);

  const int64_t depth = channel_tiles(p), steps = products_per_tile(p.C_out) * depth;
  // The distance, in pixels, from the products of the row above an output pixel to those of the row below it.
  const int64_t delay = (rows_in_columns(p.C_out) - 1) * left.pitch;
  const int64_t lines_per_step = is_direct ? 0 : kNarrowRows / kBlockRows * input_copy->lines_per_step(steps);
  Prefetch ahead(p.next_weight, std::min(p.next_bytes, kPartBytes), blocks * steps);
  const TapSum<kHasOneOutput> sum(p, bias, products, left.pitch);
  OutputPixels outputs(p, left.pitch, out, out.pixel<float>(n, begin * out.row_pixels));
  NarrowTileBlock tiles;
  for (int64_t start = 0; start < blocks * kNarrowRows; start += kNarrowRows) {
    // The last block reads no rows that it does not need, because they may be too far behind the image.
    const bool all_rows = multiplied_pixels(p, rows) - start > kNarrowRows / 2;
    if (!is_direct) input_copy->complete(start + kNarrowRows - delay);
    tiles.clear();
    // Multiply 64 pixels with the taps. Between the steps, write output pixels whose products are in memory: the matrix
    // unit and the vector units work at the same time.
    int64_t write_end = std::min(start - delay - 2, left.pixels) - kNarrowRows;
    const BFloat16* right = prepared;
    for (int64_t i = 0; i < products_per_tile(p.C_out); ++i) {
      const BFloat16* pixels = left.first + (start + left.tap[3 * i]) * left.step;
      for (int64_t d = 0; d < depth; ++d, pixels += kTileDepth, right += 2 * kNarrowRightSize) {
        tiles.multiply_add(pixels, left.step, right, all_rows);
        write_end += kNarrowRows / steps;
        outputs.write_until(write_end, sum);
        if (!is_direct) input_copy->copy_some(lines_per_step);
        ahead.step();
      }
    }
    tiles.store(products + start * kNarrowColumns);
  }
  outputs.write_until(left.pixels, sum);
}

void multiply_tap_columns(
    const RepConvParams& p, const TileImage& input, const BFloat16* prepared, const float* bias, const TileImage& out,
    int64_t n, int64_t begin, int64_t end, char* scratch) {
  const auto run = p.C_out == 1 ? multiply_tap_columns<true> : multiply_tap_columns<false>;
  run(p, input, prepared, bias, out, n, begin, end, scratch);
}

}  // namespace
}  // namespace danet
