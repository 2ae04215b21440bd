// The taps of SaFEM's SDC in bfloat16. Each vector lane prepares the taps of one pixel, so that the denominators of the
// softmax are sums of vectors, without sums across lanes.
#pragma once

#include "safem_pairs.h"

namespace danet {
namespace {

// The predictor's results for kBlockRows pixels, with the pixels side by side: value i of pixel j is at
// [i * kBlockRows + j]. First come the offsets (y, x) of every tap, then the logits of the mask.
struct Predictions {
  const float *values, *bias;
  int64_t num_taps, stride;

  DANET_INLINE F offset(int64_t tap, int axis, int64_t pixel) const { return at(2 * tap + axis, pixel); }
  DANET_INLINE F logit(int64_t tap, int64_t pixel) const { return at(2 * num_taps + tap, pixel); }
  // The same values of one pixel and one group: offset [2 * kSafemTaps], logits [kSafemTaps].
  void of_pixel(int64_t pixel, int64_t group, float* offset, float* logits) const {
    const int64_t first = group * kSafemTaps;
    const auto value = [&](int64_t i) { return values[i * stride + pixel] + bias[i]; };
    for (int64_t i = 0; i < 2 * kSafemTaps; ++i) offset[i] = value(2 * first + i);
    for (int64_t k = 0; k < kSafemTaps; ++k) logits[k] = value(2 * num_taps + first + k);
  }

 private:
  DANET_INLINE F at(int64_t i, int64_t pixel) const { return load(values + i * stride + pixel) + bias[i]; }
};

// The prepared taps of L pixels, of up to kMaxGroups groups. Each row holds one tap of all pixels.
struct PixelTaps {
  static constexpr int kMaxGroups = 4;
  // The weights of the upper and of the lower corners as pairs (left, right), divided by the denominator of the
  // softmax.
  alignas(64) uint32_t upper[kMaxGroups * kSafemTaps][L];
  uint32_t lower[kMaxGroups * kSafemTaps][L];
  uint32_t cell[kMaxGroups * kSafemTaps][L];  // the place of the top left corner in the image of pairs, in bytes
};

// The centers of the windows of L successive pixels, of which the first is pixel i of an image.
struct Centers {
  F y, x;
  Centers(const SafemParams& p, int64_t i) {
    y = broadcast<float>(float(i / p.W));
    x = broadcast<float>(float(i % p.W));
    for (int lane = 0; lane < L; ++lane) x[lane] += float(lane);
    const float W = float(p.W);
    while (any<float>(x >= W)) {  // continue in the next row
      y = x >= W ? y + 1.0f : y;
      x = x >= W ? x - W : x;
    }
  }
};

// A coordinate, clamped to [low, high], as the sum of an integer and of a fraction in [0, 1]. NaN gives a fraction of
// NaN.
DANET_INLINE F split_coordinate(F v, float low, float high, F& whole) {
#if defined(__AVX512F__)
  // The instructions return their second operand if it is NaN. Adding 1.5 * 2^23 rounds to an integer.
  const F bounded = (F)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)v));
  constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  whole = (F)_mm512_add_round_ps((__m512)bounded, _mm512_set1_ps(0x1.8p23f), kDown) - 0x1.8p23f;
  return bounded - whole;
#else
  const F bounded = clamp<float>(v, low, high);
  floor<float>(bounded, whole);
  return v != v ? v : bounded - whole;
#endif
}

// The number of a cell in the image of pairs, from the coordinates of its top left pixel. NaN gives any cell inside.
DANET_INLINE UIntVec<float> cell_number(F y, F x, const PairImage& image) {
  const F number = multiply_add<float>(y, broadcast<float>(image.row_pixels), x + image.first_pixel);
#if defined(__AVX512F__)
  const __m512i integer = _mm512_cvtps_epu32((__m512)number);  // the largest integer for NaN
  return (UIntVec<float>)_mm512_min_epu32(integer, _mm512_set1_epi32(int(image.last_cell)));
#else
  return __builtin_convertvector(number, UIntVec<float>);
#endif
}

// Prepares the taps of group `group` of L pixels into the rows of `taps` from first_tap on. pixel: the index in
// `predictions` of the first of these pixels. If an offset or a logit is NaN, so are the weights.
DANET_INLINE void prepare_group(
    const SafemParams& p, const PairImage& image, const Predictions& predictions, const Centers& centers, int64_t group,
    int64_t pixel, int64_t first_tap, PixelTaps& taps) {
  const int64_t first = group * kSafemTaps;
  // Compute the softmax over the taps.
  F m[kSafemTaps], largest = predictions.logit(first, pixel);
  m[0] = largest;
#pragma GCC unroll 8
  for (int64_t k = 1; k < kSafemTaps; ++k) {
    m[k] = predictions.logit(first + k, pixel);
    largest = m[k] > largest ? m[k] : largest;
  }
  constexpr float kLog2E = 1.44269504f;
  const F shift = largest * -kLog2E;
  F denominator{};
#pragma GCC unroll 9
  for (int64_t k = 0; k < kSafemTaps; ++k) {
    m[k] = exp2_fast(multiply_add<float>(m[k], broadcast<float>(kLog2E), shift));
    denominator += m[k];
  }
  const F factor = 1.0f / denominator;
  // Compute the cells and the weights of their corners. Coordinates outside are clamped to the border of the image of
  // pairs, which is zero.
#pragma GCC unroll 9
  for (int64_t k = 0; k < kSafemTaps; ++k) {
    const F y = (centers.y + float(k / 3 - 1)) + predictions.offset(first + k, 0, pixel);
    const F x = (centers.x + float(k % 3 - 1)) + predictions.offset(first + k, 1, pixel);
    F whole_y, whole_x;
    const F fraction_y = split_coordinate(y, -2, float(p.H), whole_y);
    const F fraction_x = split_coordinate(x, -2, float(p.W), whole_x);
    U32 upper, lower;
    bilinear_pairs(fraction_y, fraction_x, m[k] * factor, upper, lower);
    const UIntVec<float> cell = cell_number(whole_y, whole_x, image) * uint32_t(p.C * int64_t(sizeof(uint32_t)));
    std::memcpy(taps.upper[first_tap + k], &upper, sizeof upper);
    std::memcpy(taps.lower[first_tap + k], &lower, sizeof lower);
    std::memcpy(taps.cell[first_tap + k], &cell, sizeof cell);
  }
}

// Sums the nine taps of one group of one pixel: out [channels]. `pairs` points to the group's first channel in the
// image of pairs. zero_or_nan becomes NaN where a result is not finite.
DANET_INLINE void gather_group(
    const PixelTaps& taps, int64_t first_tap, int64_t pixel, const uint32_t* pairs, int64_t row_stride,
    int64_t channels, float scale, BFloat16* out, F& zero_or_nan) {
  for_channels<float>(channels, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
    constexpr int V = decltype(block)::vectors;
    constexpr int kChains = V >= 4 ? 1 : 4 / V;  // independent sums, to hide the latency of additions
    PairSums sums[kChains][V];
    // With one register for each of both rows, an address needs no instruction of its own.
    const char *upper = reinterpret_cast<const char*>(pairs + c),
               *lower = upper + row_stride * int64_t(sizeof(uint32_t));
#pragma GCC unroll 9
    for (int64_t k = 0; k < kSafemTaps; ++k) {
      const size_t cell = taps.cell[first_tap + k][pixel];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const uint32_t* corner = reinterpret_cast<const uint32_t*>((half == 0 ? upper : lower) + cell);
        const U32 weight = (half == 0 ? taps.upper : taps.lower)[first_tap + k][pixel] + U32{};
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
          sums[(2 * k + half) % kChains][v].add_products(load_pairs(corner + v * L, count), weight);
      }
    }
    // Add up the chains, and write back.
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
#pragma GCC unroll 4
      for (int chain = 1; chain < kChains; ++chain) sums[0][v].add(sums[chain][v]);
      const F result = sums[0][v].sum_halves() * scale;
      zero_or_nan += result * 0.0f;
      store_channels(out + c + v * L, result, count);
    }
  });
}

#if defined(__AVX512F__)
// Divides a vector into kGroups equal parts, and fills part g with value(g).
template <int kGroups, typename Value>
DANET_INLINE U32 side_by_side(const Value& value) {
  __m512i v = _mm512_set1_epi32(int(value(0)));
#pragma GCC unroll 4
  for (int g = 1; g < kGroups; ++g) {
    const __mmask16 part = __mmask16(((1u << L / kGroups) - 1) << g * (L / kGroups));
    v = _mm512_mask_set1_epi32(v, part, int(value(g)));
  }
  return (U32)v;
}
// Loads part g of a vector from the address at(g).
template <int kGroups, typename At>
DANET_INLINE U32 load_side_by_side(const At& at) {
  if constexpr (kGroups == 2) {
    const __m512i first = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at(0))));
    return (U32)_mm512_inserti64x4(first, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at(1))), 1);
  } else {
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at(0))));
    v = _mm512_inserti32x4(v, _mm_loadu_si128(reinterpret_cast<const __m128i*>(at(1))), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128(reinterpret_cast<const __m128i*>(at(2))), 2);
    return (U32)_mm512_inserti32x4(v, _mm_loadu_si128(reinterpret_cast<const __m128i*>(at(3))), 3);
  }
}

// Like gather_group, but for kGroups groups of L / kGroups channels each: they are computed side by side in one vector,
// because an instruction for pairs takes as long for few lanes as for all.
template <int kGroups>
DANET_INLINE void gather_side_by_side(
    const PixelTaps& taps, int64_t pixel, const uint32_t* pairs, int64_t row_stride, float scale, BFloat16* out,
    F& zero_or_nan) {
  constexpr int kChains = 4;
  PairSums sums[kChains];
#pragma GCC unroll 9
  for (int64_t k = 0; k < kSafemTaps; ++k)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const auto& weights = half == 0 ? taps.upper : taps.lower;
      const U32 weight = side_by_side<kGroups>(
          [&](int g) __attribute__((always_inline)) { return weights[g * kSafemTaps + k][pixel]; });
      const U32 values = load_side_by_side<kGroups>([&](int g) __attribute__((always_inline)) {
        const uint32_t* const group = pairs + half * row_stride + g * (L / kGroups);
        return reinterpret_cast<const char*>(group) + taps.cell[g * kSafemTaps + k][pixel];
      });
      sums[(2 * k + half) % kChains].add_products(values, weight);
    }
  sums[0].add(sums[1]);
  sums[2].add(sums[3]);
  sums[0].add(sums[2]);
  const F result = sums[0].sum_halves() * scale;
  zero_or_nan += result * 0.0f;
  store(out, result);
}
#endif

// Samples `count` <= L pixels: out [count, stride], of which the first p.C values are written. pixel: the index in
// `predictions` of the first of these pixels. `pairs` is the image's first element. Returns whether all results are
// finite.
__attribute__((noinline)) bool sample_pixels(
    const SafemParams& p, const Predictions& predictions, const Centers& centers, int64_t pixel, int64_t count,
    const uint32_t* pairs, float scale, BFloat16* out, int64_t stride) {
  const PairImage image(p);
  const int64_t channels = p.C / p.G, row_stride = image.row_stride;
  // The number of groups that are computed side by side
  int64_t groups = 1;
#if defined(__AVX512F__)
  if (channels * 2 == L && p.G % 2 == 0) groups = 2;
  if (channels * 4 == L && p.G % 4 == 0) groups = 4;
#endif
  PixelTaps taps;
  F zero_or_nan{};
  for (int64_t g = 0; g < p.G; g += groups) {
    for (int64_t i = 0; i < groups; ++i)
      prepare_group(p, image, predictions, centers, g + i, pixel, i * kSafemTaps, taps);
    const uint32_t* const from = pairs + g * channels;
    for (int64_t i = 0; i < count; ++i) {
      BFloat16* const to = out + i * stride + g * channels;
#if defined(__AVX512F__)
      if (groups == 2) {
        gather_side_by_side<2>(taps, i, from, row_stride, scale, to, zero_or_nan);
        continue;
      }
      if (groups == 4) {
        gather_side_by_side<4>(taps, i, from, row_stride, scale, to, zero_or_nan);
        continue;
      }
#endif
      gather_group(taps, 0, i, from, row_stride, channels, scale, to, zero_or_nan);
    }
  }
  return !any<float>(zero_or_nan != zero_or_nan);
}

}  // namespace
}  // namespace danet
