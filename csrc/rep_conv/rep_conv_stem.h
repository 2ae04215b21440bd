// The first layer of a network (the stem) in bfloat16: rep_conv for fewer than kFewChannels input channels, with input,
// weight and bias in float32 and a result in bfloat16, on the matrix unit.
//
// The matrix unit multiplies bfloat16 values, which have 8 significant bits. An image rounded to them would lose
// targets of low contrast. Input and weight are therefore split into two bfloat16 values each: the rounded value
// (high) and the rounded rest (low). The sum of the four products has 17 significant bits.
//
// The three input rows of an output row are copied to entries, one for each column and channel: the three high
// values, the three low values, and two ones for the bias. The 3 * C entries of an output pixel's window are then
// contiguous, and those of the next pixel begin stride * C entries later, so that a tile is loaded directly from this
// copy. A step of the product has kEntriesPerStep entries. It multiplies them by the high parts of the weights, and
// then by the low parts.
//
// Output rows that read values whose products or sums may overflow, or that are infinite or NaN, are computed in
// float32. NOTE: the matrix unit treats subnormal values as zero. Input values below 2^-118 are thereby rounded to 8
// bits.
#pragma once

#include "../common/amx.h"
#include "../common/matrix.h"
#include "../common/vec_math.h"
#include "rep_conv.h"

namespace danet {
namespace {

constexpr int kEntrySize = 8, kEntriesPerStep = kTileDepth / kEntrySize;
// Values below this limit have finite products and sums: 2^60.
constexpr float kStemLimit = 0x1p60f;

// A float32 value as the sum of two bfloat16 values, which are the upper halves of `high` and `low`; the lower halves
// have no meaning.
struct SplitVec {
  U32 high, low;

  SplitVec() = default;
  // Rounds to nearest, ties away from zero
  DANET_INLINE explicit SplitVec(F value) {
    high = ((U32)value + 0x8000u) & 0xffff0000u;
    low = (U32)(value - (F)high) + 0x8000u;
  }
};

// Pairs of bfloat16 values, from the upper halves of both.
DANET_INLINE U32 join_upper_halves(U32 first, U32 second) { return first >> 16 | (second & 0xffff0000u); }

// Whether all values whose magnitudes, shifted left by one bit, are at most `doubled` are below kStemLimit. NaN is not.
DANET_INLINE bool is_below_limit(U32 doubled) {
  const float limit = kStemLimit;
  return !any<float>((Mask<float>)(doubled >= 2 * bits_as<uint32_t>(&limit)));
}

// The sizes of the kernel's memory. A row of the input has row_size values, and its copy has `entries` entries.
struct StemLayout {
  int64_t row_size, steps, panels, pixel_step, entries;

  explicit StemLayout(const RepConvParams& p)
      : row_size(p.W * p.C), steps((3 * p.C + kEntriesPerStep - 1) / kEntriesPerStep),
        panels((p.C_out + kBlockColumns - 1) / kBlockColumns), pixel_step(p.stride * p.C * kEntrySize) {
    const int64_t pixels = (p.W_out() + kBlockRows - 1) / kBlockRows * kBlockRows;
    entries = (pixels - 1) * p.stride * p.C + steps * kEntriesPerStep;
    // The copy is written in whole vectors, which may end behind the last entry that a window reads.
    const int64_t written = p.C + (row_size + kLanes<float> - 1) / kLanes<float> * kLanes<float>;
    entries = entries > written ? entries : written;
  }
  int64_t weight_size() const { return panels * steps * 2 * kRightSize; }
  int64_t entries_bytes() const { return (entries * kEntrySize * int64_t(sizeof(BFloat16)) + 63) / 64 * 64; }
};

inline int64_t stem_scratch_size(const RepConvParams& p) {
  const StemLayout layout(p);
  return 2 * kBlockRows * kBlockColumns * int64_t(sizeof(float)) + layout.weight_size() * int64_t(sizeof(BFloat16)) +
         64 + layout.entries_bytes() + 4 * layout.row_size * int64_t(sizeof(float));
}

// The weight as few_inputs reads it: panels [ceil(C_out / panel), 9 * C, panel], with zeros beyond C_out.
struct StemWeight {
  const RepConvParams& p;
  const float* prepared;
  int64_t panel;

  // The weights of a vector of output channels from o on, for a tap and an input channel.
  DANET_INLINE F load_at(int64_t o, int64_t tap, int64_t c) const {
    if (o >= p.C_out) return F{};
    return load(prepared + ((o / panel * 9 + tap) * p.C + c) * panel + o % panel);
  }
};

// Packs weight and bias as right operands: for every panel and step, one with the high and one with the low parts.
// Returns whether all values are below kStemLimit.
inline bool pack_stem_weight(const StemLayout& layout, const StemWeight& weight, const float* bias, BFloat16* right) {
  const RepConvParams& p = weight.p;
  std::memset(right, 0, size_t(layout.weight_size()) * sizeof(BFloat16));
  U32 doubled{};
  for (int64_t panel = 0; panel < layout.panels; ++panel)
    for (int64_t entry = 0; entry < 3 * p.C; ++entry) {
      const int64_t depth = entry % kEntriesPerStep * kEntrySize;
      BFloat16* const high = right + (panel * layout.steps + entry / kEntriesPerStep) * 2 * kRightSize;
      BFloat16* const low = high + kRightSize;
      for (int64_t column = 0; column < kBlockColumns; column += kLanes<float>) {
        const int64_t o = panel * kBlockColumns + column;
        const auto store_pairs = [&](BFloat16* to, int64_t slot, U32 first, U32 second) {
          const U32 pairs = join_upper_halves(first, second);
          std::memcpy(to + right_index(depth + slot, column), &pairs, sizeof pairs);
        };
        SplitVec parts[3];
        for (int row = 0; row < 3; ++row) {
          const F values = weight.load_at(o, row * 3 + entry / p.C, entry % p.C);
          doubled = unsigned_max(doubled, (U32)values << 1);
          parts[row] = SplitVec(values);
        }
        // The high and the low values of the input are multiplied by the same weights.
        store_pairs(high, 0, parts[0].high, parts[1].high);
        store_pairs(high, 2, parts[2].high, parts[0].high);
        store_pairs(high, 4, parts[1].high, parts[2].high);
        store_pairs(low, 0, parts[0].low, parts[1].low);
        store_pairs(low, 2, parts[2].low, parts[0].low);
        store_pairs(low, 4, parts[1].low, parts[2].low);
        if (entry > 0 || bias == nullptr) continue;
        // The ones of the first entry are multiplied by the bias, which is exact as the sum of three parts
        const F biases = load_up_to(bias + o, p.C_out - o);
        doubled = unsigned_max(doubled, (U32)biases << 1);
        const SplitVec first(biases), rest(biases - (F)first.high);
        store_pairs(high, 6, first.high, rest.high);
        store_pairs(low, 6, rest.low, U32{});
      }
    }
  return is_below_limit(doubled);
}

// Writes the entries of one vector of values of the three rows, from their pairs.
DANET_INLINE void store_entries(BFloat16* to, U32 pairs0, U32 pairs1, U32 pairs2, U32 pairs3) {
#if defined(__AVX512F__)
  // Transpose 4 x 4 pairs in every quarter of the vectors. The caller has ordered the lanes, so that each result has
  // four successive entries.
  const __m512i low01 = _mm512_unpacklo_epi32((__m512i)pairs0, (__m512i)pairs1);
  const __m512i high01 = _mm512_unpackhi_epi32((__m512i)pairs0, (__m512i)pairs1);
  const __m512i low23 = _mm512_unpacklo_epi32((__m512i)pairs2, (__m512i)pairs3);
  const __m512i high23 = _mm512_unpackhi_epi32((__m512i)pairs2, (__m512i)pairs3);
  _mm512_storeu_si512(to, _mm512_unpacklo_epi64(low01, low23));
  _mm512_storeu_si512(to + 32, _mm512_unpackhi_epi64(low01, low23));
  _mm512_storeu_si512(to + 64, _mm512_unpacklo_epi64(high01, high23));
  _mm512_storeu_si512(to + 96, _mm512_unpackhi_epi64(high01, high23));
#else
  for (int i = 0; i < kLanes<float>; ++i) {
    const uint32_t entry[4] = {pairs0[i], pairs1[i], pairs2[i], pairs3[i]};
    std::memcpy(to + i * kEntrySize, entry, sizeof entry);
  }
#endif
}

// Two values 1.0 in bfloat16.
constexpr uint32_t kPairOfOnes = 0x3f803f80u;

// The copy of the three input rows of one output row.
class StemRows {
 public:
  // memory: layout.entries_bytes() for the entries, followed by four rows of the input.
  StemRows(const RepConvParams& p, const StemLayout& layout, const ImageView& input, char* memory)
      : p_(p), layout_(layout), input_(input), entries_(reinterpret_cast<BFloat16*>(memory)),
        copies_(reinterpret_cast<float*>(memory + layout.entries_bytes())), zeros_(copies_ + 3 * layout.row_size) {
    std::memset(zeros_, 0, size_t(layout.row_size) * sizeof(float));
    // The entries beside the image stay as they are: zeros and the ones of the bias
    constexpr uint32_t kEmptyEntry[4] = {0, 0, 0, kPairOfOnes};
    for (int64_t i = 0; i < layout.entries; ++i)
      std::memcpy(entries_ + i * kEntrySize, kEmptyEntry, sizeof kEmptyEntry);
  }

  // Selects the rows of an output row and copies them to the entries. Returns whether all values are below kStemLimit.
  bool load_row(int64_t n, int64_t y) {
    for (int64_t i = 0; i < 3; ++i) rows_[i] = input_row(n, y * p_.stride - 1 + i, i);
    U32 doubled{};
    for_vectors_of<float>(layout_.row_size, [&](int64_t i, int lanes) __attribute__((always_inline)) {
      SplitVec parts[3];
#pragma GCC unroll 3
      for (int row = 0; row < 3; ++row) {
        const F values = ordered(load_channels(rows_[row] + i, lanes));
        doubled = unsigned_max(doubled, (U32)values << 1);
        parts[row] = SplitVec(values);
      }
      store_entries(
          entries_ + (p_.C + i) * kEntrySize, join_upper_halves(parts[0].high, parts[1].high),
          join_upper_halves(parts[2].high, parts[0].low), join_upper_halves(parts[1].low, parts[2].low),
          U32{} + kPairOfOnes);
    });
    return is_below_limit(doubled);
  }
  const BFloat16* entries() const { return entries_; }

  // Computes a vector of output channels of pixel x in float32.
  F multiply_in_float32(const StemWeight& weight, int64_t x, int64_t o) const {
    F sum{};
    for (int64_t tap = 0; tap < 9; ++tap) {
      const int64_t column = x * p_.stride - 1 + tap % 3;
      for (int64_t c = 0; c < p_.C; ++c) {
        const float value = column < 0 || column >= p_.W ? 0.0f : rows_[tap / 3][column * p_.C + c];
        sum += value * weight.load_at(o, tap, c);
      }
    }
    return sum;
  }

 private:
  // The values of an input row, or zeros outside the image. Rows with gaps between the pixels are copied to copies_[i].
  const float* input_row(int64_t n, int64_t y, int64_t i) const {
    if (y < 0 || y >= p_.H) return zeros_;
    const float* from = input_.pixel<float>(n, y * p_.W);
    if (input_.pixel_stride == p_.C) return from;
    float* const to = copies_ + i * layout_.row_size;
    for (int64_t x = 0; x < p_.W; ++x)
      for (int64_t c = 0; c < p_.C; ++c) to[x * p_.C + c] = from[x * input_.pixel_stride + c];
    return to;
  }
  // Orders the lanes as store_entries needs them.
  static DANET_INLINE F ordered(F values) {
#if defined(__AVX512F__)
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return (F)_mm512_permutexvar_ps(order, (__m512)values);
#else
    return values;
#endif
  }

  const RepConvParams& p_;
  const StemLayout& layout_;
  const ImageView& input_;
  BFloat16* const entries_;
  float *const copies_, *const zeros_;
  const float* rows_[3];
};

// A block of pixels and a panel of output channels, whose sums are complete, but not yet written.
class UnwrittenStemBlock {
 public:
  static constexpr int kPixelsAtOnce = 4;

  explicit UnwrittenStemBlock(const RepConvParams& p) : relu_(p.relu) {}

  // sums: [kBlockRows, kBlockColumns]. out: the first pixel, to which `pixels` pixels of `channels` channels are
  // written.
  void start(const float* sums, BFloat16* out, int64_t pixels, int64_t channels, int64_t pixel_stride) {
    sums_ = sums;
    out_ = out;
    pixels_ = pixels;
    channels_ = channels;
    pixel_stride_ = pixel_stride;
  }
  // Writes the next kPixelsAtOnce pixels.
  DANET_INLINE void write_some() {
    if (pixels_ <= 0) return;
    if (channels_ == kBlockColumns && pixels_ >= kPixelsAtOnce) {
#pragma GCC unroll 4
      for (int i = 0; i < kPixelsAtOnce; ++i)
        write_line(sums_ + i * kBlockColumns, sums_ + i * kBlockColumns + kHalf, out_ + i * pixel_stride_);
    } else if (channels_ == kBlockColumns / 2 && pixel_stride_ == channels_ && pixels_ >= kPixelsAtOnce) {
#pragma GCC unroll 2
      for (int i = 0; i < kPixelsAtOnce; i += 2)  // two pixels are a cache line
        write_line(sums_ + i * kBlockColumns, sums_ + (i + 1) * kBlockColumns, out_ + i * pixel_stride_);
    } else {
      for (int64_t i = 0; i < kPixelsAtOnce && i < pixels_; ++i)
        for (int64_t o = 0; o < channels_; o += L)
          write_vector(sums_ + i * kBlockColumns + o, out_ + i * pixel_stride_ + o, channels_ - o);
    }
    pixels_ -= kPixelsAtOnce;
    sums_ += kPixelsAtOnce * kBlockColumns;
    out_ += kPixelsAtOnce * pixel_stride_;
  }
  void write_all() {
    while (pixels_ > 0) write_some();
  }

 private:
  static constexpr int64_t L = kLanes<float>, kHalf = kBlockColumns / 2;

  DANET_INLINE void write_vector(const float* sums, BFloat16* to, int64_t count) const {
    store_up_to(to, clamp_min(load(sums), relu_ ? 0.0f : -__builtin_inff()), count);
  }
  // Writes kBlockColumns values, of which each half has its own sums.
  DANET_INLINE void write_line(const float* first, const float* second, BFloat16* to) const {
#if defined(__AVX512BF16__)
    // Clear negative values, by a comparison as integers; there are no NaN here
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(second), _mm512_loadu_ps(first));
    _mm512_storeu_si512(to, _mm512_max_epi16(both, _mm512_set1_epi16(relu_ ? 0 : -0x8000)));
#else
    for (int64_t o = 0; o < kHalf; o += L) {
      write_vector(first + o, to + o, L);
      write_vector(second + o, to + kHalf + o, L);
    }
#endif
  }

  const bool relu_;
  const float* sums_ = nullptr;
  BFloat16* out_ = nullptr;
  int64_t pixels_ = 0, channels_ = 0, pixel_stride_ = 0;
};

// RepConvTileKernels::few_inputs: computes the output rows n * H_out + y in [begin, end).
inline void few_inputs_on_tiles(
    const RepConvParams& p, ImageView input, const float* prepared, int64_t panel_size, const void* bias, ImageView out,
    int64_t begin, int64_t end, char* scratch, bool is_first) {
  const StemLayout layout(p);
  constexpr int64_t kSums = kBlockRows * kBlockColumns;
  float* const sums = reinterpret_cast<float*>(scratch);
  BFloat16* const right = reinterpret_cast<BFloat16*>(sums + 2 * kSums);
  const StemWeight weight{p, prepared, panel_size};
  const float* const biases = static_cast<const float*>(bias);
  bool* const has_small_weight = reinterpret_cast<bool*>(right + layout.weight_size());
  if (is_first) *has_small_weight = pack_stem_weight(layout, weight, biases, right);
  StemRows rows(p, layout, input, reinterpret_cast<char*>(has_small_weight) + 64);

  const int64_t H_out = p.H_out(), W_out = p.W_out();
  TileBlock tiles;
  UnwrittenStemBlock unwritten(p);
  int64_t next_sums = 0;
  const bool has_half = p.C_out <= kBlockColumns / 2;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / H_out, y = row - n * H_out;
    BFloat16* const out_row = out.pixel<BFloat16>(n, y * W_out);
    if (!rows.load_row(n, y) || !*has_small_weight) {
      // Compute the row in float32
      for (int64_t x = 0; x < W_out; ++x)
        for (int64_t o = 0; o < p.C_out; o += kLanes<float>) {
          F value = rows.multiply_in_float32(weight, x, o);
          if (biases != nullptr) value += load_up_to(biases + o, p.C_out - o);
          value = clamp_min(value, p.relu ? 0.0f : -__builtin_inff());
          store_up_to(out_row + x * out.pixel_stride + o, value, p.C_out - o);
        }
      continue;
    }
    asm volatile("" ::: "memory");  // the entries must be in memory, see TileBlock
    for (int64_t x = 0; x < W_out; x += kBlockRows)
      for (int64_t panel = 0; panel < layout.panels; ++panel) {
        // Multiply 32 pixels with the weights of 32 output channels, and write the previous block meanwhile
        const BFloat16* left = rows.entries() + x * layout.pixel_step;
        const BFloat16* panel_right = right + panel * layout.steps * 2 * kRightSize;
        float* const block_sums = sums + next_sums;
        const auto write_some = [&]() __attribute__((always_inline)) { unwritten.write_some(); };
        tiles.clear();
        for (int64_t step = 0; step < layout.steps; ++step, left += kTileDepth)
          for (int part = 0; part < 2; ++part, panel_right += kRightSize) {
            if (!has_half) {
              tiles.multiply_add(left, layout.pixel_step, panel_right, write_some);
              continue;
            }
            tiles.multiply_add_half<0>(left, layout.pixel_step, panel_right);
            for (int i = 0; i < 4; ++i) write_some();
          }
        has_half ? tiles.store_half(block_sums) : tiles.store(block_sums);
        next_sums = kSums - next_sums;
        const int64_t o = panel * kBlockColumns;
        unwritten.start(
            block_sums, out_row + x * out.pixel_stride + o, W_out - x < kBlockRows ? W_out - x : kBlockRows,
            p.C_out - o < kBlockColumns ? p.C_out - o : kBlockColumns, out.pixel_stride);
      }
  }
  unwritten.write_all();
}

static_assert(2 * 4 * UnwrittenStemBlock::kPixelsAtOnce == kBlockRows, "a step must write the whole previous block");

}  // namespace
}  // namespace danet
