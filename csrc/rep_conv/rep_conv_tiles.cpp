// rep_conv in bfloat16 on the matrix unit, or with AVX512_BF16 in its place: a direct convolution whose operands come
// straight from the image.
//
// The kernel reads an image with zeros around it, and channels padded to whole tiles. For every tap, successive output
// pixels read successive pixels of this image, also across the ends of rows. A tile is therefore loaded directly from
// the image, and no im2col matrix is written. The disadvantage: each output row is computed with one additional pixel
// at its end, which is not stored. An input without such a border is copied into the L2 cache, a block of rows at a
// time; a 1x1 kernel needs no border.
//
// At stride 2, the even input rows are copied to one part of the buffer and the odd ones to another. Each tap reads
// only one part. The pixels for successive output pixels are then two pixels apart in that part, also across the ends
// of rows.
#include <algorithm>
#include <optional>

#include "rep_conv_few.h"
#include "rep_conv_stem.h"
#include "rep_conv_tap_columns.h"

namespace danet {
namespace {

// The columns of a panel of weights: a block, or half of one for float32 weights if that is enough for all output
// channels. A float32 weight takes two columns. The first half of the panel holds it rounded to bfloat16, the second
// half the rounding error.
bool has_half_panel(const RepConvParams& p) { return p.has_float32_weight && p.C_out <= kBlockColumns / 4; }
int64_t panel_columns(const RepConvParams& p) { return has_half_panel(p) ? kBlockColumns / 2 : kBlockColumns; }
int64_t panel_channels(const RepConvParams& p) {
  return p.has_float32_weight ? panel_columns(p) / 2 : panel_columns(p);
}
// The size of a panel's weights of one tap and one tile of channels.
int64_t right_size(const RepConvParams& p) { return panel_columns(p) * kTileDepth; }
int64_t panels_of(const RepConvParams& p) {
  return has_tap_columns(p) ? 1 : (p.C_out + panel_channels(p) - 1) / panel_channels(p);
}

// The weights of a panel of kBlockColumns output channels are used in parts of at most 36 KiB, so that they stay in the
// first-level cache. A part has at most kDepthPerPart tiles of channels: all taps of them if it has one or two tiles,
// else three taps.
constexpr int64_t kDepthPerPart = 4;
int64_t taps_per_part(const RepConvParams& p, int64_t part_depth) {
  return part_depth <= 2 || p.taps() == 1 ? p.taps() : 3;
}

// The number of blocks of pixels that are multiplied with one part of the weights before the next part is loaded: all
// blocks of an image of 16 x 20 pixels.
constexpr int64_t kBlocksPerWeightPart = 12;

// What the results of a panel need besides their sums. Out: the type of the bias and the result, float for float32
// weights.
template <typename Result, bool kHalfPanel>
struct Epilogue {
  using Out = Result;
  static constexpr int kVectors = kBlockColumns / L;
  Vec<float> bias[kVectors];
  float low;  // the minimum of the results: 0 for a ReLU
  int64_t channels, panel_channels;

  Epilogue(const RepConvParams& p, const Out* from, int64_t channels, int64_t panel_size)
      : low(p.relu ? 0.0f : -__builtin_inff()), channels(channels), panel_channels(panel_size) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t lanes = channels - v * L;
      bias[v] = from == nullptr || lanes <= 0 ? Vec<float>{} : load_channels(from + v * L, lanes >= L ? 0 : int(lanes));
    }
  }

  // Writes kRowsAtOnce pixels to `to`.
  DANET_INLINE void write(const float* sums, Out* const* to) const {
    const bool is_whole = !std::is_same<Out, float>::value && channels == kBlockColumns;
    is_whole ? write_rows<true>(sums, to) : write_rows<false>(sums, to);
  }

 private:
  // kWhole: all columns of the panel are results.
  template <bool kWhole>
  DANET_INLINE void write_rows(const float* sums, Out* const* to) const {
#pragma GCC unroll 4
    for (int row = 0; row < kRowsAtOnce; ++row, sums += kBlockColumns) {
      if constexpr (kWhole) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v += 2) {
          const auto value = [&](int i) __attribute__((always_inline)) {
            return clamp_min(load(sums + i * L) + bias[i], low);
          };
          store_two(to[row] + v * L, value(v), value(v + 1));
        }
        continue;
      }
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const int64_t column = v * L;
        if (!kWhole && column >= channels) break;
        Vec<float> value = load(sums + column) + bias[v];
        if (std::is_same<Out, float>::value) value += load(sums + panel_channels + column);
        if (kHalfPanel)  // the sums of the odd steps, see TileBlock::multiply_add_half
          value += load(sums + kBlockColumns / 2 + column) + load(sums + kBlockColumns / 2 + panel_channels + column);
        const int lanes = kWhole || column + L <= channels ? 0 : int(channels - column);
        store_channels(to[row] + column, clamp_min(value, low), lanes);
      }
    }
  }
};

int64_t scratch_size(const RepConvParams& p, int64_t rows) {
  if (has_tap_columns(p)) return tap_column_scratch_size(p, rows);
  return PaddedInput(p, rows).size() * int64_t(sizeof(BFloat16)) +
         kBlocksPerWeightPart * kBlockRows * kBlockColumns * int64_t(sizeof(float));
}

template <typename Out, bool kHalfPanel>
void multiply_blocks(
    const RepConvParams& p, const TileImage& input, const BFloat16* prepared, const Out* bias, const TileImage& out,
    int64_t n, int64_t begin, int64_t end, int64_t first, int64_t last, char* scratch) {
  float* const sums = reinterpret_cast<float*>(scratch);
  BFloat16* const copy = reinterpret_cast<BFloat16*>(sums + kBlocksPerWeightPart * kBlockRows * kBlockColumns);
  const PaddedInput padded(p, end - begin);
  const bool has_block = input.has_border || (end - begin) * input.row_pixels >= kBlockRows;
  const bool is_direct = reads_directly(p, input) && has_block;
  std::optional<InputCopy> input_copy;
  if (!is_direct) input_copy.emplace(p, input, n, begin, padded, copy);
  const LeftOperands left = is_direct ? LeftOperands(p, input, n, begin, end - begin) : LeftOperands(p, padded, copy);

  constexpr int64_t kStep = kHalfPanel ? kRightSize / 2 : kRightSize;
  const int64_t depth = channel_tiles(p), panel_size = panel_channels(p), pixel_step = left.stride * left.step;
  const int64_t blocks = (left.pixels + kBlockRows - 1) / kBlockRows;
  TileBlock tiles;
  UnwrittenBlock<Epilogue<Out, kHalfPanel>> unwritten;
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t o = panel * panel_size, channels = p.C_out - o < panel_size ? p.C_out - o : panel_size;
    const Epilogue<Out, kHalfPanel> epilogue(p, bias == nullptr ? nullptr : bias + o, channels, panel_size);
    Out* const to = out.pixel<Out>(n, begin * out.row_pixels) + o;
    for (int64_t first_block = 0; first_block < blocks; first_block += kBlocksPerWeightPart) {
      const int64_t end_block =
          first_block + kBlocksPerWeightPart < blocks ? first_block + kBlocksPerWeightPart : blocks;
      const BFloat16* weight = prepared + panel * p.taps() * depth * kStep;
      // Take the weights in parts that fit into the first-level cache. Between the parts, the sums of the blocks are
      // kept in memory. While a part is used, load the next one, or at the end the first part of the next layer's
      // weight.
      for (int64_t d = 0; d < depth; d += kDepthPerPart) {
        const int64_t part_depth = depth - d < kDepthPerPart ? depth - d : kDepthPerPart;
        const int64_t taps = taps_per_part(p, part_depth);
        for (int64_t tap = 0; tap < p.taps(); tap += taps, weight += taps * part_depth * kStep) {
          const bool is_first = d == 0 && tap == 0, is_last = d + part_depth == depth && tap + taps == p.taps();
          const int64_t rows_per_step = (kBlockRows + taps * part_depth - 1) / (taps * part_depth);
          const int64_t lines_per_step = is_direct ? 0 : input_copy->lines_per_step(taps * part_depth);
          const int64_t part_size = taps * part_depth * kStep, steps = (end_block - first_block) * taps * part_depth;
          const bool is_end = panel + 1 == last && end_block == blocks && is_last;
          Prefetch ahead = is_end             ? Prefetch(p.next_weight, std::min(p.next_bytes, kPartBytes), steps)
                           : first_block == 0 ? Prefetch(weight + part_size, 2 * part_size, steps)
                                              : Prefetch();
          for (int64_t block = first_block; block < end_block; ++block) {
            float* const block_sums = sums + (block - first_block) * kBlockRows * kBlockColumns;
            const int64_t start = left.block_start(block);
            const bool all_rows = left.pixels - start > kBlockRows / 2;
            is_first ? tiles.clear() : tiles.load(block_sums);
            if (!is_direct) input_copy->complete(start + kBlockRows);
            // Multiply the taps of 32 pixels with the weights of 32 output channels
            const BFloat16* right = weight;
            for (int64_t k = tap; k < tap + taps; ++k) {
              const BFloat16* pixels = left.first + (left.tap[k] + start * left.stride) * left.step + d * kTileDepth;
              for (int64_t i = 0; i < part_depth; ++i, pixels += kTileDepth, right += kStep) {
                if (!kHalfPanel)
                  tiles.multiply_add(pixels, pixel_step, right, all_rows);
                else if ((k + i) % 2 == 0)
                  tiles.multiply_add_half<0>(pixels, pixel_step, right);
                else
                  tiles.multiply_add_half<1>(pixels, pixel_step, right);
                unwritten.write_some(epilogue, rows_per_step);
                if (!is_direct) input_copy->copy_some(lines_per_step);
                ahead.step();
              }
            }
            unwritten.write_all(epilogue);
            tiles.store(block_sums);
            if (is_last) unwritten.start(block_sums, start, left.pixels, p.W_out(), left.pitch, out, to);
          }
        }
      }
    }
    unwritten.write_all(epilogue);
  }
}

void forward(
    const RepConvParams& p, const TileImage& input, const BFloat16* prepared, const void* bias, const TileImage& out,
    int64_t n, int64_t begin, int64_t end, int64_t first, int64_t last, char* scratch) {
  const auto run = [&](const auto* typed_bias, auto half) {
    using Out = std::decay_t<decltype(*typed_bias)>;
    multiply_blocks<Out, half.value>(p, input, prepared, typed_bias, out, n, begin, end, first, last, scratch);
  };
  if (has_tap_columns(p))
    return multiply_tap_columns(p, input, prepared, static_cast<const float*>(bias), out, n, begin, end, scratch);
  if (has_half_panel(p)) return run(static_cast<const float*>(bias), std::true_type{});
  if (p.has_float32_weight) return run(static_cast<const float*>(bias), std::false_type{});
  run(static_cast<const BFloat16*>(bias), std::false_type{});
}

int64_t prepared_size(const RepConvParams& p) {
  return has_tap_columns(p) ? tap_column_weight_size(p) : panels_of(p) * p.taps() * channel_tiles(p) * right_size(p);
}

// Lays out a weight in the order in which `forward` reads it. value(column, i) is what a column of a panel holds of
// element i of the weight.
template <typename Value>
void pack_panels(const RepConvParams& p, BFloat16* prepared, const Value& value) {
  const int64_t tiles = channel_tiles(p);
  for (int64_t panel = 0; panel < panels_of(p); ++panel)
    for (int64_t d = 0; d < tiles; d += kDepthPerPart)
      for (int64_t k = 0; k < p.taps(); ++k)
        for (int64_t i = d; i < tiles && i < d + kDepthPerPart; ++i, prepared += right_size(p)) {
          const auto value_at = [&](int64_t depth, int64_t column) {
            const int64_t c = i * kTileDepth + depth, o = panel * panel_channels(p) + column % panel_channels(p);
            return c < p.C && o < p.C_out ? value(column, (o * p.C + c) * p.taps() + k) : BFloat16{0};
          };
          pack_right(prepared, value_at, panel_columns(p));
        }
}

// Packs the weight [C_out, C, taps], with zeros for channels that do not exist.
void prepare(const RepConvParams& p, const void* weight, BFloat16* prepared) {
  if (!p.has_float32_weight) {
    const BFloat16* values = static_cast<const BFloat16*>(weight);
    return pack_panels(p, prepared, [&](int64_t /* column */, int64_t i) { return values[i]; });
  }
  const float* values = static_cast<const float*>(weight);
  if (has_tap_columns(p)) return prepare_tap_columns(p, values, prepared);
  pack_panels(p, prepared, [&](int64_t column, int64_t i) {
    const BFloat16 rounded = from_compute<BFloat16>(values[i]);
    if (column < panel_channels(p)) return rounded;
    return from_compute<BFloat16>(values[i] - to_compute(rounded));
  });
}

// With AVX512_BF16 in place of a matrix unit, products in float32 are faster than those of split values.
#if defined(__AVX512BF16__) && !defined(__AMX_TILE__)
int64_t stem_scratch(const RepConvParams& p) { return few_inputs_scratch(p) * int64_t(sizeof(float)); }
void stem(
    const RepConvParams& p, ImageView input, const float* prepared, int64_t /* panel_size */, const void* bias,
    ImageView out, int64_t begin, int64_t end, char* scratch, bool /* is_first */) {
  few_inputs<float, BFloat16>(p, input, prepared, bias, out, begin, end, reinterpret_cast<float*>(scratch));
}
#else
constexpr auto stem_scratch = stem_scratch_size;
constexpr auto stem = few_inputs_on_tiles;
#endif

constexpr RepConvTileKernels kKernels = {panels_of,      prepared_size, prepare,      scratch_size,
                                         reads_directly, forward,       stem_scratch, stem};

}  // namespace

const RepConvTileKernels& DANET_ISA::rep_conv_tile_kernels() { return kKernels; }

}  // namespace danet
