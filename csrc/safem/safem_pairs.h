// How SaFEM reads an image in bfloat16: from a copy, called the image of pairs. Each 32-bit element of it holds two values
// of one channel: that of a pixel and that of its right neighbour (zero after the last column).
//
// One instruction of AVX512_BF16 multiplies such pairs by pairs of weights and adds the products to float32 sums. Both
// upper corners of a bilinear sample are then one load and one instruction, and so are the lower ones. The depth-wise
// convolution needs two instructions per row of its window. Reading the image itself needs about four times as many
// instructions, because each of its values must be converted to float32 first. The copy is as large as an image in
// float32. The weights of the corners are rounded to bfloat16. The error of a sample is then about as large as the
// rounding error of the result.
#pragma once

#include "../common/bfloat16_pairs.h"
#include "safem_block.h"

namespace danet {
namespace {

// Loads the first `count` elements of a vector, or all of them if count is 0.
DANET_INLINE U32 load_pairs(const uint32_t* p, int count) {
  if (count == 0) return bits_as<U32>(p);
#if defined(__AVX512F__)
  return (U32)_mm512_maskz_loadu_epi32(__mmask16((1u << count) - 1), p);
#else
  U32 v{};
  std::memcpy(&v, p, size_t(count) * sizeof *p);
  return v;
#endif
}

constexpr int64_t padded_channels(int64_t C) { return (C + L - 1) / L * L; }
enum DepthwisePair { kLeftMiddle, kMiddleRight, kRightOnly, kMiddleOnly, kDepthwisePairs };

// The weights of a pixel's taps as pairs: half[0] for the upper corners and half[1] for the lower ones. one_column: the
// image has one column, so that both corners of a row are the same pixel.
struct PairWeights {
  alignas(64) uint32_t half[2][kMaxTaps + 16];

  DANET_INLINE PairWeights(const TapTable<float>& taps, int64_t num_taps, bool one_column) {
    for (int64_t j = 0; j < num_taps; j += L)
      for (int i = 0; i < 2; ++i) {
        F left = load(taps.weight[2 * i] + j), right = load(taps.weight[2 * i + 1] + j);
        if (one_column) left += right, right = F{};
        const U32 pair = pair_bfloat16(left, right);
        std::memcpy(half[i] + j, &pair, sizeof pair);
      }
  }
};

template <>
struct Source<BFloat16> {
  ImageView input;
  CellBounds bounds;
  const uint32_t* pairs;
  uint32_t stride;
  int64_t row_stride, image_stride;  // of the image of pairs

  Source(const SafemParams& p, ImageView input, const uint32_t* pairs)
      : input(input), bounds(sdc_params(p), input, 0, p.H), pairs(pairs), stride(uint32_t(p.C)), row_stride(p.W * p.C),
        image_stride(p.H * p.W * p.C) {}

  static int64_t pairs_size(const SafemParams& p) { return p.N * p.H * p.W * p.C; }

  static void make_pairs(const SafemParams& p, ImageView input, int64_t begin, int64_t end, uint32_t* pairs) {
    pairs += begin * p.W * p.C;
    for (int64_t row = begin; row < end; ++row)
      for (int64_t x = 0; x < p.W; ++x, pairs += p.C) {
        const BFloat16* pixel = input.pixel<BFloat16>(row / p.H, row % p.H * p.W + x);
        const BFloat16* next = x + 1 < p.W ? pixel + input.pixel_stride : nullptr;
        int64_t c = 0;
        for (; c + L <= p.C; c += L) {
          const U32 both = pair_bfloat16(bits_as<U16>(pixel + c), next == nullptr ? U16{} : bits_as<U16>(next + c));
          std::memcpy(pairs + c, &both, sizeof both);
        }
        for (; c < p.C; ++c) pairs[c] = pixel[c].bits | (next == nullptr ? 0 : uint32_t(next[c].bits) << 16);
      }
  }

  static int64_t weight_size(int64_t C) { return kSafemTaps / 3 * kDepthwisePairs * padded_channels(C); }

  static void prepare(const float* weight, int64_t C, float* prepared) {
    const int64_t C_pad = padded_channels(C);
    for (int64_t c = 0; c < C; ++c)
      for (int64_t row = 0; row < 3; ++row) {
        const auto pair = [](float low, float high) {
          return from_compute<BFloat16>(low).bits | uint32_t(from_compute<BFloat16>(high).bits) << 16;
        };
        const float* w = weight + c * kSafemTaps + row * 3;
        const uint32_t values[] = {pair(w[0], w[1]), pair(w[1], w[2]), pair(w[2], 0), pair(w[1], 0)};
        for (int64_t i = 0; i < kDepthwisePairs; ++i)
          std::memcpy(prepared + (row * kDepthwisePairs + i) * C_pad + c, values + i, sizeof values[i]);
      }
  }

  DANET_INLINE void depthwise_relu(
      const SafemParams& p, const float* weight, const float* bias, int64_t n, int64_t i, BFloat16* out) const {
    const int64_t y = i / p.W, x = i - y * p.W, C_pad = padded_channels(p.C);
    const uint32_t* const weights = reinterpret_cast<const uint32_t*>(weight);
    // Collect the pairs inside the image, at most two per row.
    const uint32_t* pixels[6];
    const uint32_t* factors[6];
    int count = 0;
    const auto add = [&](int64_t row, int64_t column, int64_t variant) __attribute__((always_inline)) {
      pixels[count] = pairs + n * image_stride + (y + row - 1) * row_stride + column * p.C;
      factors[count++] = weights + (row * kDepthwisePairs + variant) * C_pad;
    };
    for (int64_t row = y == 0 ? 1 : 0; row < 3 && y + row <= p.H; ++row) {
      if (x > 0)
        add(row, x - 1, kLeftMiddle);
      else
        add(row, 0, p.W > 1 ? kMiddleRight : kMiddleOnly);
      if (x > 0 && x + 1 < p.W) add(row, x + 1, kRightOnly);
    }
    // Sum them, one vector of channels at a time, in two chains of additions to hide their latency.
    for_vectors_of<float>(p.C, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      const auto add_pair = [&](F sum, int k) __attribute__((always_inline)) {
        return add_pair_products(sum, load_pairs(pixels[k] + c, lanes), load_pairs(factors[k] + c, 0));
      };
      F even = load(bias + c), odd{};
      int k = 0;
      for (; k + 2 <= count; k += 2) even = add_pair(even, k), odd = add_pair(odd, k + 1);
      if (k < count) even = add_pair(even, k);
      store(out + c, clamp_min(even + odd, 0.0f));
    });
  }

  DANET_INLINE void sum_taps(
      const SdcParams& p, TapTable<float>& taps, const TapInputs<float, float>& inputs, int64_t n, int64_t channel,
      BFloat16* out, int64_t group_channels) const {
    const bool inside = prepare_taps</*kBackward=*/false>(p, taps, inputs);
    if (!inside) clamp_cells</*kWeights=*/true>(p, taps, inputs.num_taps, 0, p.H, stride, taps.cell);
    if (gather(p, taps, inputs.num_taps, pairs + n * image_stride + channel, out, group_channels)) return;
    // Compute the groups that are not finite again, as in sdc.
    sum_not_finite_groups(p, taps, inputs, bounds, input.pixel<BFloat16>(n, 0) + channel, out, group_channels);
  }

 private:
  // As gather_groups of sdc_forward.h: out [groups, group_channels] from the taps of the table. Returns whether all
  // results are finite.
  __attribute__((noinline)) bool gather(
      const SdcParams& p, const TapTable<float>& taps, int64_t num_taps, const uint32_t* group_pairs, BFloat16* out,
      int64_t group_channels) const {
    const PairWeights weights(taps, num_taps, /*one_column=*/p.W == 1);
    const int64_t below = p.H > 1 ? row_stride : 0;
#if defined(__AVX512F__)
    if (group_channels * 2 == L && num_taps % (2 * kSafemTaps) == 0)
      return gather_side_by_side<2>(taps, weights, num_taps, group_pairs, below, out);
    if (group_channels * 4 == L && num_taps % (4 * kSafemTaps) == 0)
      return gather_side_by_side<4>(taps, weights, num_taps, group_pairs, below, out);
#endif
    F zero_or_nan{};  // NaN in lanes in which a result was not finite
    for (int64_t first = 0; first < num_taps; first += kSafemTaps, out += group_channels) {
      const F factor = broadcast<float>(1 / sum_values<kSafemTaps>(taps.m + first, kSafemTaps));
      for_channels<float>(group_channels, [&](auto block, int64_t c, int count) __attribute__((always_inline)) {
        constexpr int V = decltype(block)::vectors;
        constexpr int kChains = V >= 4 ? 1 : 4 / V;  // independent sums, to hide the latency of additions
        F total[kChains][V] = {};
        const uint32_t* const at = group_pairs + c;
#pragma GCC unroll 9
        for (int64_t k = 0; k < kSafemTaps; ++k)
#pragma GCC unroll 2
          for (int half = 0; half < 2; ++half) {
            const U32 weight = weights.half[half][first + k] + U32{};
            const uint32_t* corner = at + half * below + taps.cell[first + k];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
              F& sum = total[(2 * k + half) % kChains][v];
              sum = add_pair_products(sum, load_pairs(corner + v * L, count), weight);
            }
          }
        // Add up the chains, divide by the denominator of the softmax, and write back
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          F result = total[0][v];
#pragma GCC unroll 4
          for (int chain = 1; chain < kChains; ++chain) result += total[chain][v];
          result *= factor;
          zero_or_nan += result * 0.0f;
          store_channels(out + c + v * L, result, count);
        }
      });
    }
    return !any<float>(zero_or_nan != zero_or_nan);
  }

#if defined(__AVX512F__)
  // The same if a group has half (kGroups = 2) or a quarter (4) of the channels of a vector: that many groups are
  // computed side by side in one vector, because an instruction for pairs takes as long for few lanes as for all.
  template <int kGroups>
  DANET_INLINE bool gather_side_by_side(
      const TapTable<float>& taps, const PairWeights& weights, int64_t num_taps, const uint32_t* group_pairs,
      int64_t below, BFloat16* out) const {
    constexpr int kChains = 4;
    F zero_or_nan{};
    for (int64_t first = 0; first < num_taps; first += kGroups * kSafemTaps, out += L) {
      float factors[kGroups];
      for (int g = 0; g < kGroups; ++g)
        factors[g] = 1 / sum_values<kSafemTaps>(taps.m + first + g * kSafemTaps, kSafemTaps);
      F total[kChains] = {};
#pragma GCC unroll 9
      for (int64_t k = 0; k < kSafemTaps; ++k)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const uint32_t* const corners = group_pairs + half * below;
          const U32 weight = side_by_side<kGroups>(
              [&](int g) __attribute__((always_inline)) { return weights.half[half][first + g * kSafemTaps + k]; });
          const U32 values = load_side_by_side<kGroups>(
              [&](int g) __attribute__((always_inline)) { return corners + taps.cell[first + g * kSafemTaps + k]; });
          F& sum = total[(2 * k + half) % kChains];
          sum = add_pair_products(sum, values, weight);
        }
      const F factor = (F)side_by_side<kGroups>(
          [&](int g) __attribute__((always_inline)) { return bits_as<uint32_t>(factors + g); });
      const F result = ((total[0] + total[1]) + (total[2] + total[3])) * factor;
      zero_or_nan += result * 0.0f;
      store(out, result);
    }
    return !any<float>(zero_or_nan != zero_or_nan);
  }

  // A vector whose parts repeat one value each: value(g) in part g.
  template <int kGroups, typename Value>
  static DANET_INLINE U32 side_by_side(const Value& value) {
    __m512i v = _mm512_set1_epi32(int(value(0)));
#pragma GCC unroll 4
    for (int g = 1; g < kGroups; ++g) {
      const __mmask16 part = __mmask16(((1u << L / kGroups) - 1) << g * (L / kGroups));
      v = _mm512_mask_set1_epi32(v, part, int(value(g)));
    }
    return (U32)v;
  }
  // A vector whose parts are loaded from at(g).
  template <int kGroups, typename At>
  static DANET_INLINE U32 load_side_by_side(const At& at) {
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
#endif
};

}  // namespace
}  // namespace danet
