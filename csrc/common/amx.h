// Matrix products in bfloat16 with float32 sums on AMX (Advanced Matrix Extensions), the matrix unit of Intel
// processors from Sapphire Rapids on (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter
// 18).
//
// AMX has eight tile registers of 16 rows of 64 bytes. One instruction, TDPBF16PS, multiplies a tile of 16 x 32 values
// by a tile of 32 x 16 values and adds the products to a tile of 16 x 16 float32 sums. TileBlock uses four tiles for
// sums, two for the left and two for the right operand: four products need four loaded tiles. A load takes about 8
// cycles and a product 16, so that the loads do not limit the speed.
//
// Processors without AMX may have AVX512_BF16 (AMD from Zen 4 on, Intel from Cooper Lake on), whose instruction
// VDPBF16PS multiplies pairs of bfloat16 values in vector registers.
//
// Files named *_tiles.cpp are compiled three times: for AMX, for AVX512_BF16, and in plain C++ for tests on any
// processor. All compute the same except for subnormal values and the order of summation, with two exceptions: SaFEM
// samples and convolves in float16 on AMX and in bfloat16 with AVX512_BF16 (pairs.h), and the first layer is computed
// in float32 with AVX512_BF16. isa.cpp selects one of them at run time.
#pragma once

#include "transpose.h"
#include "vec.h"

namespace danet {
namespace {

// The sizes of a TileBlock: sums [kBlockRows, kBlockColumns], to which products with a depth of kTileDepth are added.
constexpr int kBlockRows = 32, kBlockColumns = 32, kTileDepth = 32;
// Values of one packed right operand; see pack_right.
constexpr int kRightSize = kTileDepth * kBlockColumns;

// The index, in a packed right operand, of its value [depth, column]: two tiles of 16 columns, in which the values of
// two successive depths are neighbours, because TDPBF16PS multiplies pairs.
constexpr int64_t right_index(int64_t depth, int64_t column) {
  return column / 16 * (kRightSize / 2) + depth / 2 * 32 + column % 16 * 2 + depth % 2;
}

// Packs value(depth, column) as a right operand of `columns` columns: kBlockColumns, or half of them, which take half
// of the memory.
template <typename Value>
void pack_right(BFloat16* right, const Value& value, int64_t columns = kBlockColumns) {
  for (int64_t depth = 0; depth < kTileDepth; ++depth)
    for (int64_t column = 0; column < columns; ++column) right[right_index(depth, column)] = value(depth, column);
}

// Packs kBlockRows rows of kTileDepth values, which are `stride` values apart, as a right operand: each row becomes a
// column.
inline void pack_rows(const BFloat16* rows, int64_t stride, BFloat16* right) {
#if defined(__AVX512F__)
  // A row has 16 pairs of values. Transpose the pairs of 16 rows.
  for (int64_t half = 0; half < 2; ++half, rows += 16 * stride, right += kRightSize / 2) {
    __m512i row[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) row[i] = _mm512_loadu_si512(rows + i * stride);
    transpose_16(row);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(right + 32 * i, row[i]);
  }
#else
  pack_right(right, [&](int64_t depth, int64_t column) { return rows[column * stride + depth]; });
#endif
}

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)

// A block of sums in the tile registers of the calling thread, for the lifetime of the object. The operands must be in
// memory before the object is made.
class TileBlock {
 public:
  TileBlock() {
    // Palette 1 has eight tiles; each gets its full size
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    // NOTE: _tile_loadconfig and _tile_loadd of GCC do not tell the compiler which memory they read: it could move or
    // remove the stores to it. The first statement names all of `config`, the second one covers the operands.
    asm volatile("ldtilecfg %0" ::"m"(config));
    asm volatile("" ::: "memory");
  }
  ~TileBlock() { _tile_release(); }
  TileBlock(const TileBlock&) = delete;
  TileBlock& operator=(const TileBlock&) = delete;

  DANET_INLINE void clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  // Loads or stores the sums [kBlockRows, kBlockColumns], contiguous.
  DANET_INLINE void load(const float* sums) {
    _tile_loadd(0, sums, 4 * kBlockColumns);
    _tile_loadd(1, sums + 16, 4 * kBlockColumns);
    _tile_loadd(2, sums + 16 * kBlockColumns, 4 * kBlockColumns);
    _tile_loadd(3, sums + 16 * kBlockColumns + 16, 4 * kBlockColumns);
  }
  DANET_INLINE void store(float* sums) const {
    _tile_stored(0, sums, 4 * kBlockColumns);
    _tile_stored(1, sums + 16, 4 * kBlockColumns);
    _tile_stored(2, sums + 16 * kBlockColumns, 4 * kBlockColumns);
    _tile_stored(3, sums + 16 * kBlockColumns + 16, 4 * kBlockColumns);
  }
  // Stores the first half of the columns.
  DANET_INLINE void store_half(float* sums) const {
    _tile_stored(0, sums, 4 * kBlockColumns);
    _tile_stored(2, sums + 16 * kBlockColumns, 4 * kBlockColumns);
  }
  // Adds left * right to the sums. left: kBlockRows rows of kTileDepth values, which are `stride` values apart; rows
  // should not cross cache lines. right: a packed operand.
  // all_rows: otherwise, only the first half of the rows is needed.
  DANET_INLINE void multiply_add(const BFloat16* left, int64_t stride, const BFloat16* right, bool all_rows = true) {
    if (!all_rows) {
      _tile_loadd(4, left, 2 * stride);
      _tile_loadd(6, right, 64);
      _tile_loadd(7, right + kRightSize / 2, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      return;
    }
    _tile_loadd(4, left, 2 * stride);
    _tile_loadd(6, right, 64);
    _tile_loadd(7, right + kRightSize / 2, 64);
    _tile_loadd(5, left + 16 * stride, 2 * stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  // The same, with four calls of work() between the products: the matrix unit and the vector units work at the same
  // time.
  template <typename Work>
  DANET_INLINE void multiply_add(const BFloat16* left, int64_t stride, const BFloat16* right, const Work& work) {
    _tile_loadd(4, left, 2 * stride);
    _tile_loadd(6, right, 64);
    _tile_dpbf16ps(0, 4, 6);
    work();
    _tile_loadd(7, right + kRightSize / 2, 64);
    _tile_dpbf16ps(1, 4, 7);
    work();
    _tile_loadd(5, left + 16 * stride, 2 * stride);
    _tile_dpbf16ps(2, 5, 6);
    work();
    _tile_dpbf16ps(3, 5, 7);
    work();
  }
  // Adds left * right to half kHalf of the columns of the sums, for a right operand with the first half of the columns
  // only. Steps with alternating halves do not wait for each other; the result is the sum of
  // both halves.
  template <int kHalf>
  DANET_INLINE void multiply_add_half(const BFloat16* left, int64_t stride, const BFloat16* right) {
    _tile_loadd(4, left, 2 * stride);
    _tile_loadd(6, right, 64);
    _tile_loadd(5, left + 16 * stride, 2 * stride);
    if (kHalf == 0) {  // the numbers of tiles must be literals
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(2, 5, 6);
    } else {
      _tile_dpbf16ps(1, 4, 6);
      _tile_dpbf16ps(3, 5, 6);
    }
  }
};

#elif defined(__AVX512BF16__)

// The same class with AVX512_BF16. The sums are in memory, and those of 8 or 16 rows are in vector registers
// during a product.
class TileBlock {
 public:
  DANET_INLINE void clear() { std::memset(sums_, 0, sizeof sums_); }
  DANET_INLINE void load(const float* sums) { std::memcpy(sums_, sums, sizeof sums_); }
  DANET_INLINE void store(float* sums) const { std::memcpy(sums, sums_, sizeof sums_); }
  DANET_INLINE void store_half(float* sums) const { store(sums); }
  DANET_INLINE void multiply_add(
      const BFloat16* left, int64_t stride, const BFloat16* right, bool /* all_rows */ = true) {
    multiply_columns<8, 2>(left, stride, right, 0);
  }
  template <typename Work>
  DANET_INLINE void multiply_add(const BFloat16* left, int64_t stride, const BFloat16* right, const Work& work) {
    multiply_add(left, stride, right);
    for (int i = 0; i < 4; ++i) work();
  }
  template <int kHalf>
  DANET_INLINE void multiply_add_half(const BFloat16* left, int64_t stride, const BFloat16* right) {
    multiply_columns<16, 1>(left, stride, right, kHalf * kBlockColumns / 2);
  }

 private:
  // Adds the products of kVectors * 16 columns, kRows rows at a time: for each pair of depths, one vector of every 16
  // columns is multiplied by one pair of each row.
  template <int kRows, int kVectors>
  DANET_INLINE void multiply_columns(const BFloat16* left, int64_t stride, const BFloat16* right, int first_sum) {
    for (int first = 0; first < kBlockRows; first += kRows, left += kRows * stride) {
      __m512 sums[kRows][kVectors];
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sums[row][v] = _mm512_load_ps(&sums_[first + row][first_sum + 16 * v]);
      for (int pair = 0; pair < kTileDepth / 2; ++pair) {
        __m512bh columns[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v)
          columns[v] = (__m512bh)_mm512_loadu_si512(right + v * (kRightSize / 2) + 32 * pair);
#pragma GCC unroll 16
        for (int row = 0; row < kRows; ++row) {
          int32_t values;
          std::memcpy(&values, left + row * stride + 2 * pair, sizeof values);
          const __m512bh both = (__m512bh)_mm512_set1_epi32(values);
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) sums[row][v] = _mm512_dpbf16_ps(sums[row][v], both, columns[v]);
        }
      }
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) _mm512_store_ps(&sums_[first + row][first_sum + 16 * v], sums[row][v]);
    }
  }

  alignas(64) float sums_[kBlockRows][kBlockColumns];
};

#else

// The same class in plain C++. It adds in the order of TDPBF16PS: the products of even and of odd depths are summed
// separately, then both sums are added to the result. NOTE: unlike this class, TDPBF16PS treats subnormal values and
// results as zero.
class TileBlock {
 public:
  DANET_INLINE void clear() { std::memset(sums_, 0, sizeof sums_); }
  DANET_INLINE void load(const float* sums) { std::memcpy(sums_, sums, sizeof sums_); }
  DANET_INLINE void store(float* sums) const { std::memcpy(sums, sums_, sizeof sums_); }
  DANET_INLINE void store_half(float* sums) const { store(sums); }
  void multiply_add(const BFloat16* left, int64_t stride, const BFloat16* right, bool /* all_rows */ = true) {
    multiply_columns<kBlockColumns>(left, stride, right, 0);
  }
  template <typename Work>
  DANET_INLINE void multiply_add(const BFloat16* left, int64_t stride, const BFloat16* right, const Work& work) {
    multiply_add(left, stride, right);
    for (int i = 0; i < 4; ++i) work();
  }
  template <int kHalf>
  void multiply_add_half(const BFloat16* left, int64_t stride, const BFloat16* right) {
    multiply_columns<kBlockColumns / 2>(left, stride, right, kHalf * kBlockColumns / 2);
  }

 private:
  template <int64_t kColumns>
  void multiply_columns(const BFloat16* left, int64_t stride, const BFloat16* right, int64_t first_sum) {
    float values[kTileDepth][kColumns];
    for (int64_t depth = 0; depth < kTileDepth; ++depth)
      for (int64_t column = 0; column < kColumns; ++column)
        values[depth][column] = to_compute(right[right_index(depth, column)]);
    for (int64_t row = 0; row < kBlockRows; ++row) {
      float even[kColumns] = {}, odd[kColumns] = {};
      for (int64_t depth = 0; depth < kTileDepth; depth += 2) {
        const float first = to_compute(left[row * stride + depth]), second = to_compute(left[row * stride + depth + 1]);
        for (int64_t column = 0; column < kColumns; ++column) {
          even[column] += first * values[depth][column];
          odd[column] += second * values[depth + 1][column];
        }
      }
      for (int64_t column = 0; column < kColumns; ++column)
        sums_[row][first_sum + column] += even[column] + odd[column];
    }
  }

  float sums_[kBlockRows][kBlockColumns];
};

#endif

// The sizes of a NarrowTileBlock: sums [kNarrowRows, kNarrowColumns]. Its two right operands have kNarrowRightSize
// values each.
constexpr int kNarrowRows = 64, kNarrowColumns = 16;
constexpr int kNarrowRightSize = kTileDepth * kNarrowColumns;

// A block with half as many columns and twice as many rows as a TileBlock. Each left operand is multiplied by two right
// operands, such as the two bfloat16 values of a float32 weight, so that eight products need six loaded tiles.
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)

class NarrowTileBlock : private TileBlock {
 public:
  using TileBlock::clear;

  // Stores the sums, contiguous.
  DANET_INLINE void store(float* sums) const {
    constexpr int kTileSize = 16 * kNarrowColumns;
    _tile_stored(0, sums, 4 * kNarrowColumns);
    _tile_stored(1, sums + kTileSize, 4 * kNarrowColumns);
    _tile_stored(2, sums + 2 * kTileSize, 4 * kNarrowColumns);
    _tile_stored(3, sums + 3 * kTileSize, 4 * kNarrowColumns);
  }
  // Adds left * right[0] + left * right[1] to the sums of all rows, or of the first half of them; the left operand's
  // other rows are then not read. right: two operands of kNarrowColumns columns, one after the other; see pack_right.
  DANET_INLINE void multiply_add(const BFloat16* left, int64_t stride, const BFloat16* right, bool all_rows) {
    _tile_loadd(6, right, 64);
    _tile_loadd(4, left, 2 * stride);
    _tile_loadd(5, left + 16 * stride, 2 * stride);
    _tile_loadd(7, right + kNarrowRightSize, 64);
    // Products of the same sums are not neighbors, because the second one waits for the first one
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    _tile_dpbf16ps(0, 4, 7);
    _tile_dpbf16ps(1, 5, 7);
    if (!all_rows) return;
    _tile_loadd(4, left + 32 * stride, 2 * stride);
    _tile_loadd(5, left + 48 * stride, 2 * stride);
    _tile_dpbf16ps(2, 4, 6);
    _tile_dpbf16ps(3, 5, 6);
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
};

#else

// The same class without AMX. It uses half of the columns of two blocks.
class NarrowTileBlock {
 public:
  DANET_INLINE void clear() {
    for (TileBlock& half : halves_) half.clear();
  }
  void store(float* sums) const {
    alignas(64) float all[kBlockRows * kBlockColumns];
    for (const TileBlock& half : halves_) {
      half.store(all);
      for (int row = 0; row < kBlockRows; ++row, sums += kNarrowColumns)
        std::memcpy(sums, all + row * kBlockColumns, kNarrowColumns * sizeof(float));
    }
  }
  void multiply_add(const BFloat16* left, int64_t stride, const BFloat16* right, bool all_rows) {
    for (int i = 0; i < (all_rows ? 2 : 1); ++i, left += kBlockRows * stride) {
      halves_[i].multiply_add_half<0>(left, stride, right);
      halves_[i].multiply_add_half<0>(left, stride, right + kNarrowRightSize);
    }
  }

 private:
  TileBlock halves_[2];
};

#endif

}  // namespace
}  // namespace danet
