// rep_conv in bfloat16 on the matrix unit, or with AVX512_BF16 in its place: a direct convolution whose operands come straight from the image.
//
// The kernel reads an image with zeros around it, and channels padded to whole tiles. For every tap, successive output
// pixels read successive pixels of this image, also across the ends of rows. A tile is therefore loaded directly from the
// image, and no im2col matrix is written. The disadvantage: each output row is computed with one additional pixel at its
// end, which is not stored. An input without such a border is copied into the L2 cache, a block of rows at a time; a 1x1
// kernel needs no border.
//
// At stride 2, the even input rows are copied to one part of the buffer and the odd ones to another. Each tap reads only
// one part. The pixels for successive output pixels are then two pixels apart in that part, also across the ends of rows.
#include <algorithm>
#include <optional>

#include "../common/amx.h"
#include "rep_conv_few.h"

namespace danet {
namespace {

constexpr int L = kLanes<float>;
constexpr int64_t kCacheLine = 64;

// The number of tiles of kTileDepth channels of the input.
int64_t channel_tiles(const RepConvParams& p) { return (p.C + kTileDepth - 1) / kTileDepth; }
// The columns of a panel of weights: a block, or half of one for float32 weights if that is enough for all output
// channels. A float32 weight takes two columns. The first half of the panel holds it rounded to bfloat16, the second half
// the rounding error.
bool has_half_panel(const RepConvParams& p) { return p.has_float32_weight && p.C_out <= kBlockColumns / 4; }
int64_t panel_columns(const RepConvParams& p) { return has_half_panel(p) ? kBlockColumns / 2 : kBlockColumns; }
int64_t panel_channels(const RepConvParams& p) {
  return p.has_float32_weight ? panel_columns(p) / 2 : panel_columns(p);
}
// The size of a panel's weights of one tap and one tile of channels.
int64_t right_size(const RepConvParams& p) { return panel_columns(p) * kTileDepth; }
int64_t panels_of(const RepConvParams& p) { return (p.C_out + panel_channels(p) - 1) / panel_channels(p); }

// The weights of a panel of kBlockColumns output channels are used in parts of at most 36 KiB, so that they stay in the
// first-level cache. A part has at most kDepthPerPart tiles of channels: all taps of them if it has one or two tiles,
// else three taps.
constexpr int64_t kDepthPerPart = 4, kPartBytes = 36 << 10;
int64_t taps_per_part(const RepConvParams& p, int64_t part_depth) {
  return part_depth <= 2 || p.taps() == 1 ? p.taps() : 3;
}

// The number of blocks of pixels that are multiplied with one part of the weights before the next part is loaded: all
// blocks of an image of 16 x 20 pixels.
constexpr int64_t kBlocksPerWeightPart = 12;

// The copy of the input of `rows` output rows, as pixels of `channels` values. Tap k of the output pixel (row, x) reads
// pixel tap[k] + (row * pitch + x) * stride of the copy.
struct PaddedInput {
  int64_t rows, channels, stride, border, pitch, row_pixels, pixels;
  int64_t tap[9];
  int64_t odd_rows;  // at stride 2: the first pixel of the odd input rows, which are stored after the even ones
  // The last block reads up to this many pixels behind the last row.
  int64_t extra;

  PaddedInput(const RepConvParams& p, int64_t rows)
      : rows(rows), channels(channel_tiles(p) * kTileDepth), stride(p.stride), border(p.kernel_size / 2), odd_rows(0),
        extra(stride * kBlockRows + 2) {
    // Each row of the copy begins with its left border. At stride 1, that pixel is also the right border of the row
    // before it.
    pitch = p.W_out() + border;
    row_pixels = pitch * stride;
    if (stride == 1) {
      for (int64_t k = 0; k < p.taps(); ++k) tap[k] = k / p.kernel_size * pitch + k % p.kernel_size;
      pixels = (rows + 2 * border) * row_pixels + extra;
      return;
    }
    odd_rows = rows * row_pixels + extra;
    pixels = odd_rows + (rows + 1) * row_pixels + extra;
    for (int64_t k = 0; k < 9; ++k) tap[k] = (k / 3 == 1 ? 0 : odd_rows) + (k / 3 == 2 ? row_pixels : 0) + k % 3;
  }

  int64_t size() const { return pixels * channels; }

  // The first pixel of the copy of input row y, for output rows from `first` on.
  int64_t row_start(int64_t first, int64_t y) const {
    if (stride == 1) return (y - first + border) * row_pixels;
    return y % 2 == 0 ? (y / 2 - first) * row_pixels : odd_rows + ((y + 1) / 2 - first) * row_pixels;
  }
};

// Copies the input rows that a block of output rows reads, with zeros around them and channels padded with zeros. The rows
// are copied in their order, a few cache lines at a time between the products of the first panel, because the matrix unit
// and the vector units work at the same time.
class InputCopy {
 public:
  InputCopy(
      const RepConvParams& p, const TileImage& input, int64_t n, int64_t first, const PaddedInput& padded,
      BFloat16* copy)
      : p_(p), input_(input), n_(n), first_(first), padded_(padded), copy_(copy),
        row_(first * p.stride - padded.border), last_row_((first + padded.rows - 1) * p.stride + padded.border),
        lines_per_run_(padded.channels / kTileDepth * (input.pixel_stride == p.C ? p.W : 1)) {
    clear(copy + (padded.pixels - padded.extra) * padded.channels, padded.extra);
    if (p.stride == 2) clear(copy + (padded.odd_rows - padded.extra) * padded.channels, padded.extra);
    start_row();
  }

  // Copies what the output pixels before `pixel` of the padded output still lack.
  DANET_INLINE void complete(int64_t pixel) {
    if (row_ > last_row_) return;
    const int64_t output_row = first_ + (pixel - 1) / padded_.pitch;
    const int64_t needed = output_row * p_.stride + padded_.border;
    while (row_ <= needed && row_ <= last_row_) copy_lines(lines_left_);
  }
  // Copies at most this number of cache lines of the rows that follow.
  DANET_INLINE void copy_some(int64_t lines) {
    if (row_ <= last_row_) copy_lines(lines < lines_left_ ? lines : lines_left_);
  }
  // The number of cache lines to copy per step, so that the copy stays ahead of the blocks, which take `steps` steps.
  int64_t lines_per_step(int64_t steps) const {
    const int64_t lines = kBlockRows * p_.stride * p_.stride * padded_.channels / kTileDepth;
    return (lines + steps - 1) / steps;
  }

 private:
  void clear(BFloat16* to, int64_t pixels) const {
    std::memset(to, 0, size_t(pixels * padded_.channels) * sizeof(BFloat16));
  }

  // Writes the left and the right border of the next row of the image. Rows outside of the image, and all pixels of a
  // row whose channels are not whole tiles, are written at once.
  void start_row() {
    for (; row_ <= last_row_; ++row_) {
      BFloat16* const row = copy_ + padded_.row_start(first_, row_) * padded_.channels;
      if (row_ < 0 || row_ >= p_.H) {
        clear(row, padded_.row_pixels);
        continue;
      }
      clear(row, padded_.border);
      to_ = row + padded_.border * padded_.channels;
      clear(to_ + p_.W * padded_.channels, padded_.row_pixels - padded_.border - p_.W);
      from_ = input_.pixel<BFloat16>(n_, row_ * input_.row_pixels);
      lines_left_ = p_.W * padded_.channels / kTileDepth;
      run_left_ = lines_per_run_;
      if (p_.C == padded_.channels) return;
      copy_padded_row();
    }
  }
  void copy_padded_row() const {
    const int64_t whole = p_.C / kTileDepth * kTileDepth;
    BFloat16* to = to_;
    const BFloat16* from = from_;
    for (int64_t x = 0; x < p_.W; ++x, to += padded_.channels, from += input_.pixel_stride) {
      for (int64_t c = 0; c < whole; c += kTileDepth)  // faster than a call of memcpy
        std::memcpy(to + c, from + c, kTileDepth * sizeof(BFloat16));
      std::memcpy(to + whole, from + whole, size_t(p_.C - whole) * sizeof(BFloat16));
      std::memset(to + p_.C, 0, size_t(padded_.channels - p_.C) * sizeof(BFloat16));
    }
  }
  DANET_INLINE void copy_lines(int64_t lines) {
    lines_left_ -= lines;
    for (; lines > 0; --lines, to_ += kTileDepth, from_ += kTileDepth) {
      std::memcpy(to_, from_, kTileDepth * sizeof(BFloat16));
      if (--run_left_ > 0) continue;
      run_left_ = lines_per_run_;
      from_ += input_.pixel_stride - p_.C;
    }
    if (lines_left_ > 0) return;
    ++row_;
    start_row();
  }

  const RepConvParams& p_;
  const TileImage& input_;
  const int64_t n_, first_;
  const PaddedInput& padded_;
  BFloat16* const copy_;
  int64_t row_;                             // the input row that is being copied
  const int64_t last_row_, lines_per_run_;  // a run: cache lines that are contiguous in the image
  int64_t run_left_ = 0, lines_left_ = 0;   // cache lines of the run and of the row that are not copied yet
  const BFloat16* from_ = nullptr;
  BFloat16* to_ = nullptr;
};

static_assert(kTileOverrun >= kBlockRows, "a block may read behind the border of the last image");

// Whether the input is read directly: it needs a border of zeros for a 3x3 kernel, and channels in whole tiles. Without a
// border, the last block must not read behind the image: it is moved back, so the image must have at least kBlockRows pixels.
bool reads_directly(const RepConvParams& p, const TileImage& input) {
  if (p.stride != 1 || p.C % kTileDepth != 0) return false;
  return input.has_border || (p.kernel_size == 1 && input.row_pixels == p.W && p.H * p.W >= kBlockRows);
}

// Loads memory into the L2 cache during `steps` steps. The weights of a network do not stay in the cache from one image to
// the next.
class Prefetch {
 public:
  Prefetch() = default;
  Prefetch(const void* data, int64_t bytes, int64_t steps)
      : next_(static_cast<const char*>(data)), lines_per_step_((bytes / kCacheLine + steps - 1) / steps) {}
  DANET_INLINE void step() {
    for (int64_t i = 0; i < lines_per_step_; ++i, next_ += kCacheLine) __builtin_prefetch(next_, 0, 2);
  }

 private:
  const char* next_ = nullptr;
  int64_t lines_per_step_ = 0;
};

// The left operands of the products. Tap k of pixel i of a block's rows is at first + (i * stride + tap[k]) * step.
struct LeftOperands {
  const BFloat16* first;
  int64_t step, stride, pitch, pixels;
  int64_t tap[9];
  // The largest pixel at which a block of kBlockRows pixels may begin.
  int64_t last_block;

  // From the image itself, for output rows from `row` on.
  LeftOperands(const RepConvParams& p, const TileImage& input, int64_t n, int64_t row, int64_t rows)
      : first(input.pixel<BFloat16>(n, row * input.row_pixels)), step(input.pixel_stride), stride(1),
        pitch(input.row_pixels), pixels(rows * input.row_pixels), last_block(pixels) {
    const int64_t center = p.kernel_size / 2;
    for (int64_t k = 0; k < p.taps(); ++k) tap[k] = (k / p.kernel_size - center) * pitch + k % p.kernel_size - center;
    if (input.has_border) return;
    // The last block ends with the image: it overlaps the block before it and writes the same values again. NOTE: the
    // caller has checked that these rows have at least kBlockRows pixels.
    last_block = (p.H - row) * pitch - kBlockRows;
  }
  // From a copy with zeros around it.
  LeftOperands(const RepConvParams& p, const PaddedInput& padded, const BFloat16* copy)
      : first(copy), step(padded.channels), stride(padded.stride), pitch(padded.pitch),
        pixels(padded.rows * padded.pitch), last_block(pixels) {
    for (int64_t k = 0; k < p.taps(); ++k) tap[k] = padded.tap[k];
  }

  // The first pixel of a block.
  DANET_INLINE int64_t block_start(int64_t block) const {
    return block * kBlockRows < last_block ? block * kBlockRows : last_block;
  }
};

// What the results of a panel need besides their sums. Out: the type of the bias and the result, float for float32
// weights.
template <typename Out, bool kHalfPanel>
struct Epilogue {
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

  // Writes kRows pixels to `to`. kWhole: all columns of the panel are results.
  template <bool kWhole, int kRows>
  DANET_INLINE void write(const float* sums, Out* const* to) const {
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row, sums += kBlockColumns)
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
};

// A block whose sums are complete, but not yet written. They are written a few pixels at a time between the steps of the
// next block, because the matrix unit and the vector units work at the same time.
template <typename Out, bool kHalfPanel>
struct UnwrittenBlock {
  static constexpr int kRowsAtOnce = 4;
  const float* sums = nullptr;
  int next = kBlockRows;  // the first pixel that is not written
  Out* to[kBlockRows];
  alignas(64) Out unused[kBlockColumns];  // takes the pixels that do not exist

  // The padded output has rows of `pitch` pixels, of which the first W are stored, and `end` pixels in all. first: the
  // block's first pixel in it. out: the place of the pixel 0.
  void start(
      const float* block_sums, int64_t first, int64_t end, int64_t W, int64_t pitch, const TileImage& image, Out* out) {
    sums = block_sums;
    next = 0;
    int64_t x = first % pitch;
    Out* pixel = out + (first / pitch * image.row_pixels + x) * image.pixel_stride;
    const int64_t next_row = (image.row_pixels - pitch + 1) * image.pixel_stride;
    for (int64_t i = 0; i < kBlockRows; ++i) {
      to[i] = x < W && first + i < end ? pixel : unused;
      const bool is_last = x + 1 == pitch;
      pixel += is_last ? next_row : image.pixel_stride;
      x = is_last ? 0 : x + 1;
    }
  }
  DANET_INLINE void write_some(const Epilogue<Out, kHalfPanel>& epilogue, int64_t rows) {
    if (next == kBlockRows) return;
    const bool is_whole = !std::is_same<Out, float>::value && epilogue.channels == kBlockColumns;
    for (; rows > 0 && next < kBlockRows; rows -= kRowsAtOnce, next += kRowsAtOnce) {
      const float* from = sums + next * kBlockColumns;
      is_whole ? epilogue.template write<true, kRowsAtOnce>(from, to + next)
               : epilogue.template write<false, kRowsAtOnce>(from, to + next);
    }
  }
  void write_all(const Epilogue<Out, kHalfPanel>& epilogue) { write_some(epilogue, kBlockRows); }
};

int64_t scratch_size(const RepConvParams& p, int64_t rows) {
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
  UnwrittenBlock<Out, kHalfPanel> unwritten;
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t o = panel * panel_size, channels = p.C_out - o < panel_size ? p.C_out - o : panel_size;
    const Epilogue<Out, kHalfPanel> epilogue(p, bias == nullptr ? nullptr : bias + o, channels, panel_size);
    Out* const to = out.pixel<Out>(n, begin * out.row_pixels) + o;
    for (int64_t first_block = 0; first_block < blocks; first_block += kBlocksPerWeightPart) {
      const int64_t end_block =
          first_block + kBlocksPerWeightPart < blocks ? first_block + kBlocksPerWeightPart : blocks;
      const BFloat16* weight = prepared + panel * p.taps() * depth * kStep;
      // Take the weights in parts that fit into the first-level cache. Between the parts, the sums of the blocks are
      // kept in memory. While a part is used, load the next one, or at the end the first part of the next layer's weight.
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
            is_first ? tiles.clear() : tiles.load(block_sums);
            if (!is_direct) input_copy->complete(start + kBlockRows);
            // Multiply the taps of 32 pixels with the weights of 32 output channels
            const BFloat16* right = weight;
            for (int64_t k = tap; k < tap + taps; ++k) {
              const BFloat16* pixels = left.first + (left.tap[k] + start * left.stride) * left.step + d * kTileDepth;
              for (int64_t i = 0; i < part_depth; ++i, pixels += kTileDepth, right += kStep) {
                if (!kHalfPanel)
                  tiles.multiply_add(pixels, pixel_step, right);
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
  if (has_half_panel(p)) return run(static_cast<const float*>(bias), std::true_type{});
  if (p.has_float32_weight) return run(static_cast<const float*>(bias), std::false_type{});
  run(static_cast<const BFloat16*>(bias), std::false_type{});
}

int64_t prepared_size(const RepConvParams& p) { return panels_of(p) * p.taps() * channel_tiles(p) * right_size(p); }

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
  pack_panels(p, prepared, [&](int64_t column, int64_t i) {
    const BFloat16 rounded = from_compute<BFloat16>(values[i]);
    if (column < panel_channels(p)) return rounded;
    return from_compute<BFloat16>(values[i] - to_compute(rounded));
  });
}

#if defined(__AVX512BF16__)
constexpr auto kFewInputs = few_inputs<float, BFloat16>;
#else
constexpr std::nullptr_t kFewInputs = nullptr;
#endif

constexpr RepConvTileKernels kKernels = {panels_of,      prepared_size, prepare,   scratch_size,
                                         reads_directly, forward,       kFewInputs};

}  // namespace

const RepConvTileKernels& DANET_ISA::rep_conv_tile_kernels() { return kKernels; }

}  // namespace danet
