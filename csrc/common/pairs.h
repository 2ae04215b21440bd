// Pairs of 16-bit floating-point values: every 32-bit lane of a vector holds one value in its low half and one in its
// high half. One instruction multiplies two such vectors and adds the products of both halves to sums.
//
// The values are float16 on processors with AMX: these have AVX512_FP16, and start two such instructions per cycle.
// They are bfloat16 on processors that have AVX512_BF16 only. Intel processors start one VDPBF16PS every two cycles,
// but AMD processors one per cycle. The plain version for tests computes in float16 as well.
#pragma once

#include <algorithm>
#include <cmath>

#include "vec.h"

// Compilers that know AMX, but not AVX512_FP16, compile the kernels for AMX with AVX512_BF16.
#if defined(__AVX512FP16__) || !defined(__AVX512BF16__)
#define DANET_PAIRS_ARE_FLOAT16 1
#else
#define DANET_PAIRS_ARE_FLOAT16 0
#endif

namespace danet {
namespace {

DANET_INLINE U32 join_halves(U16 low, U16 high) {
#if defined(__AVX512F__)  // the compiler would convert in two halves
  return (U32)_mm512_or_si512(
      _mm512_cvtepu16_epi32((__m256i)low), _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)high), 16));
#else
  return __builtin_convertvector(low, U32) | __builtin_convertvector(high, U32) << 16;
#endif
}

#if DANET_PAIRS_ARE_FLOAT16

// Values rounded to the type of a pair's values. Beyond 65504, float16 values become infinite.
DANET_INLINE U16 round_to_pair_type(Vec<float> v) {
#if defined(__AVX512F__)
  return (U16)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#else
  return __builtin_convertvector(float_to_half<U32>(v), U16);
#endif
}
DANET_INLINE U16 bfloat16_to_pair_type(U16 bits, float factor) {
  return round_to_pair_type(widen_bfloat16(bits) * factor);
}
// Whether values of this largest magnitude fit the range of float16 without a scale. Sums of 9 products of them with
// weights below 2 fit, too.
inline bool fits_pair_type(float largest) { return largest == 0 || (largest >= 0x1p-4f && largest < 0x1p11f); }
// The exponent of the largest weight: weights are divided by this power of two.
inline int weight_exponent(float largest) { return largest == 0 ? 0 : std::max(std::ilogb(largest), -126); }
DANET_INLINE uint16_t round_to_pair_type(float value) { return from_compute<Half>(value).bits; }

DANET_INLINE U32 pair_of(Vec<float> low, Vec<float> high) {
  return join_halves(round_to_pair_type(low), round_to_pair_type(high));
}

// The weights of the four pixels around a sample with the fractional coordinates (y, x), times m: upper = (left, right)
// of the upper row, lower = those of the lower row.
DANET_INLINE void bilinear_pairs(Vec<float> y, Vec<float> x, Vec<float> m, U32& upper, U32& lower) {
  const Vec<float> low = m * y, up = m - low;
#if defined(__AVX512FP16__)
  // Both values of a pair get the same factor for y. Those for x are 1 - x and x.
  alignas(64) static constexpr uint16_t kDuplicateLanes[32] = {
      0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15};
  const auto duplicate = [](Vec<float> v) __attribute__((always_inline)) {
    const __m512i values = _mm512_castsi256_si512((__m256i)round_to_pair_type(v));
    return (__m512h)_mm512_permutexvar_epi16(_mm512_load_si512(kDuplicateLanes), values);
  };
  const __m512h signs = (__m512h)_mm512_set1_epi32(0x3c00bc00), ones = (__m512h)_mm512_set1_epi32(0x00003c00);
  const __m512h columns = _mm512_fmadd_ph(duplicate(x), signs, ones);
  upper = (U32)_mm512_mul_ph(columns, duplicate(up));
  lower = (U32)_mm512_mul_ph(columns, duplicate(low));
#else
  const Vec<float> upper_right = up * x, lower_right = low * x;
  upper = pair_of(up - upper_right, upper_right);
  lower = pair_of(low - lower_right, lower_right);
#endif
}

#if defined(__AVX512FP16__)
// Sums of products of pairs, one sum for the low and one for the high values of each lane.
class PairSums {
 public:
  DANET_INLINE void add_products(U32 a, U32 b) { sums_ = _mm512_fmadd_ph((__m512h)a, (__m512h)b, sums_); }
  DANET_INLINE void add(const PairSums& other) { sums_ = _mm512_add_ph(sums_, other.sums_); }
  // The sums of both halves.
  DANET_INLINE Vec<float> sum_halves() const {
    const __m512i swapped = _mm512_rol_epi32((__m512i)sums_, 16);
    const __m512h both = _mm512_add_ph(sums_, (__m512h)swapped);
    return (Vec<float>)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)both));
  }

 private:
  __m512h sums_ = _mm512_setzero_ph();
};
#else
class PairSums {
 public:
  DANET_INLINE void add_products(U32 a, U32 b) {
    low_ = rounded(low_half(a) * low_half(b) + low_);
    high_ = rounded(low_half(a >> 16) * low_half(b >> 16) + high_);
  }
  DANET_INLINE void add(const PairSums& other) {
    low_ = rounded(low_ + other.low_);
    high_ = rounded(high_ + other.high_);
  }
  DANET_INLINE Vec<float> sum_halves() const { return rounded(low_ + high_); }

 private:
  static DANET_INLINE Vec<float> low_half(U32 pairs) { return half_to_float<Vec<float> >(pairs & 0xffffu); }
  static DANET_INLINE Vec<float> rounded(Vec<float> v) { return half_to_float<Vec<float> >(float_to_half<U32>(v)); }

  Vec<float> low_{}, high_{};
};
#endif

#else

DANET_INLINE U16 bfloat16_to_pair_type(U16 bits, float /* factor */) { return bits; }
inline bool fits_pair_type(float /* largest */) { return true; }
inline int weight_exponent(float /* largest */) { return 0; }
DANET_INLINE uint16_t round_to_pair_type(float value) { return from_compute<BFloat16>(value).bits; }

DANET_INLINE U32 pair_of(Vec<float> low, Vec<float> high) {
  alignas(64) static constexpr uint16_t kAlternating[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                            21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                            11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  return (U32)_mm512_permutexvar_epi16(_mm512_load_si512(kAlternating), both);
}

DANET_INLINE void bilinear_pairs(Vec<float> y, Vec<float> x, Vec<float> m, U32& upper, U32& lower) {
  const Vec<float> low = m * y, up = m - low, upper_right = up * x, lower_right = low * x;
  upper = pair_of(up - upper_right, upper_right);
  lower = pair_of(low - lower_right, lower_right);
}

// Sums of products of pairs: VDPBF16PS adds the products of both halves to one float32 sum.
class PairSums {
 public:
  DANET_INLINE void add_products(U32 a, U32 b) { sums_ = _mm512_dpbf16_ps(sums_, (__m512bh)a, (__m512bh)b); }
  DANET_INLINE void add(const PairSums& other) { sums_ = _mm512_add_ps(sums_, other.sums_); }
  DANET_INLINE Vec<float> sum_halves() const { return (Vec<float>)sums_; }

 private:
  __m512 sums_ = _mm512_setzero_ps();
};

#endif

}  // namespace
}  // namespace danet
