// What the convolutions on the matrix unit share: the copy of an input without a border, the left operands of the
// products, and blocks of sums that are written later. rep_conv_tiles.cpp describes how they work together.
#pragma once

#include "../common/amx.h"
#include "rep_conv.h"

namespace danet {
namespace {

constexpr int L = kLanes<float>;
constexpr int64_t kCacheLine = 64;

// The number of tiles of kTileDepth channels of the input.
int64_t channel_tiles(const RepConvParams& p) { return (p.C + kTileDepth - 1) / kTileDepth; }

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

// Copies the input rows that a block of output rows reads, with zeros around them and channels padded with zeros. The
// rows are copied in their order, a few cache lines at a time between the products of the first panel, because the
// matrix unit and the vector units work at the same time.
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

// Whether the input is read directly: it needs a border of zeros for a 3x3 kernel, and channels in whole tiles. Without
// a border, the last block must not read behind the image: it is moved back, so the image must have at least kBlockRows
// pixels.
bool reads_directly(const RepConvParams& p, const TileImage& input) {
  if (p.stride != 1 || p.C % kTileDepth != 0) return false;
  return input.has_border || (p.kernel_size == 1 && input.row_pixels == p.W && p.H * p.W >= kBlockRows);
}

// A call of a kernel loads at most this much of the memory that the next call needs.
constexpr int64_t kPartBytes = 36 << 10;

// Loads memory into the L2 cache during `steps` steps. The weights of a network do not stay in the cache from one image
// to the next.
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

constexpr int kRowsAtOnce = 4;

// A block whose sums are complete, but not yet written. They are written a few pixels at a time between the steps of
// the next block, because the matrix unit and the vector units work at the same time. Epilogue: makes results of type
// Epilogue::Out from sums; its function write writes kRowsAtOnce pixels.

template <typename Epilogue>
struct UnwrittenBlock {
  using Out = typename Epilogue::Out;
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
  DANET_INLINE void write_some(const Epilogue& epilogue, int64_t rows) {
    if (next == kBlockRows) return;
    for (; rows > 0 && next < kBlockRows; rows -= kRowsAtOnce, next += kRowsAtOnce)
      epilogue.write(sums + next * kBlockColumns, to + next);
  }
  void write_all(const Epilogue& epilogue) { write_some(epilogue, kBlockRows); }
};

}  // namespace
}  // namespace danet
