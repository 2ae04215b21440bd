// What the host decides for a launch of SDC's forward kernel (sdc_forward.cuh): the tiles of the blocks, strides, and
// whether the blocks copy offset and mask to shared memory first.
#pragma once

#include <algorithm>

#include "sdc_taps.cuh"

namespace danet {
namespace {

// The items of the blocks: groups_per_block groups of a tile of tile_h x tile_w output pixels, tile_w = 2^log2_tile_w.
// is_flat: the tiles are flat, which means that all pixels of an image count as one row.
struct ForwardTiles {
  int32_t tile_h, log2_tile_w, tiles_x, tiles_y;
  int32_t rows, columns;  // of the output; flat: 1 and H_out * W_out
  bool is_flat;
  gpu::Divisor groups_per_block, tiles_x_divisor, tiles_y_divisor, group_blocks_divisor, out_width;

  ForwardTiles(const SdcParams& p, int max_items, int64_t group_bytes)
      : tile_h(1), log2_tile_w(0), rows(int32_t(p.H_out)), columns(int32_t(p.W_out)), is_flat(false),
        groups_per_block(choose_groups(p, max_items, group_bytes)), tiles_x_divisor(1), tiles_y_divisor(1),
        group_blocks_divisor((p.G + groups_per_block.divisor - 1) / groups_per_block.divisor), out_width(p.W_out) {
    const int pixels = max_items / int(groups_per_block.divisor);
    // Double the width and the height in turn, the width first.
    while (2 * (tile_h << log2_tile_w) <= pixels) {
      if (1 << log2_tile_w <= tile_h)
        ++log2_tile_w;
      else
        tile_h *= 2;
    }
    count_tiles();
    // Use flat tiles if the tiles would cover over a tenth more pixels than the image has.
    const int64_t covered = int64_t(tiles_x) * tiles_y * (tile_h << log2_tile_w);
    if (10 * covered > 11 * p.H_out * p.W_out) {
      is_flat = true, columns *= rows, rows = 1;
      while (tile_h > 1) tile_h /= 2, ++log2_tile_w;
      count_tiles();
    }
    tiles_x_divisor = gpu::Divisor(tiles_x), tiles_y_divisor = gpu::Divisor(tiles_y);
  }
  int items_per_block() const { return (tile_h << log2_tile_w) * int(groups_per_block.divisor); }
  int64_t num_blocks(int64_t N) const { return N * tiles_x * tiles_y * group_blocks_divisor.divisor; }

 private:
  // Few groups leave more of the items for pixels, and neighboring pixels share their input. Takes four groups, or as
  // many as fill two sectors of 32 bytes if these are more, rounded up to a divisor of G, so that all blocks are full.
  // If that exceeds max_items, takes the largest divisor that does not.
  static int64_t choose_groups(const SdcParams& p, int max_items, int64_t group_bytes) {
    int64_t groups = std::min<int64_t>(p.G, std::max<int64_t>(4, 64 / group_bytes));
    while (p.G % groups != 0) ++groups;
    groups = std::min<int64_t>(groups, max_items);
    while (p.G % groups != 0) --groups;
    return groups;
  }
  void count_tiles() {
    tiles_x = (columns + (1 << log2_tile_w) - 1) >> log2_tile_w, tiles_y = (rows + tile_h - 1) / tile_h;
  }
};

// Strides that the kernel would otherwise compute in every thread.
struct ForwardStrides {
  // From the top left corner of a cell to each of its corners, in bytes; 0 for a corner that the image does not have
  // because it has only one row or column.
  int64_t corner_bytes[4];
  // The bytes from one pixel of the input to the next. Four equal copies, so that the compiler does not know that they
  // are equal: it would multiply once, and then add 64 bits with two instructions for each corner (gpu::element).
  uint32_t pixel_bytes[4];
  int64_t input_image, out_image;  // from one image to the next, in elements

  ForwardStrides(const SdcParams& p, const ImageView& input, int element_bytes)
      : input_image(input.image_stride), out_image(p.H_out * p.W_out * p.C) {
    const int64_t bytes = input.pixel_stride * element_bytes;
    for (int corner = 0; corner < 4; ++corner) {
      pixel_bytes[corner] = uint32_t(bytes);
      corner_bytes[corner] = (p.W > 1 ? corner % 2 * bytes : 0) + (p.H > 1 ? corner / 2 * p.W * bytes : 0);
    }
  }
};

// Whether the kernel can stage offset and mask (StagedRun). In float32, the copy and its reads would take the L1 cache
// as long as the reads of the threads.
template <typename T, int kTaps>
constexpr bool kCanStage = kTaps > 0 && sizeof(T) == 2;

// The largest range, a multiple of what a warp copies at once: 32 items of 27 values with some space between them. It
// fits into the memory of the table of taps for the warp.
template <typename T>
constexpr int kMaxStagedBytes = (32 * 27 * int(sizeof(T)) + 511) / 512 * 512;

// A run is a number of neighboring output pixels of one row whose items, of all groups, are the items of one warp. If
// offset and mask of a run are one range of memory, the warp copies it to shared memory with accesses of 16 bytes. Its
// threads would otherwise read a few bytes each, from more sectors.
struct StagedRun {
  int32_t log2_pixels = 0;
  int32_t bytes = 0;       // of the range; 0: the threads read offset and mask themselves
  int32_t mask_start = 0;  // the elements before the mask

  // The run of a call; no staging if the range is not suitable.
  template <typename T>
  static StagedRun plan(const SdcParams& p, const ForwardTiles& tiles, const ImageView& offset, const ImageView& mask) {
    const int64_t G = p.G, distance = static_cast<const T*>(mask.data) - static_cast<const T*>(offset.data);
    if (G != tiles.groups_per_block.divisor || 32 % G != 0 || tiles.items_per_block() % 32 != 0) return {};
    const int64_t pixels = 32 / G, pixel = offset.pixel_stride;
    const bool is_one_tensor = mask.pixel_stride == pixel && mask.image_stride == offset.image_stride && distance > 0;
    const int64_t end = std::max(
        (G - 1) * p.offset_group_stride + 2 * p.K, distance + (G - 1) * p.mask_group_stride + p.K);  // in a pixel
    const int64_t range = ((pixels - 1) * pixel + end) * int64_t(sizeof(T));
    const auto is_multiple = [](int64_t elements) { return elements * int64_t(sizeof(T)) % 16 == 0; };
    const bool is_aligned = reinterpret_cast<uintptr_t>(offset.data) % 16 == 0 && range % 16 == 0 &&
                            is_multiple(offset.image_stride) && is_multiple(pixels * pixel) &&
                            (tiles.rows == 1 || is_multiple(tiles.columns * pixel));
    if (!is_one_tensor || !is_aligned || end > pixel || range > kMaxStagedBytes<T> || pixels > 1 << tiles.log2_tile_w)
      return {};
    int32_t log2_pixels = 0;
    while (1 << log2_pixels < pixels) ++log2_pixels;
    return {log2_pixels, int32_t(range), int32_t(distance)};
  }
};

}  // namespace
}  // namespace danet
