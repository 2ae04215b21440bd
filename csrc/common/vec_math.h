// Arithmetic on all lanes of the vectors of vec.h: comparisons, limits, floor and exponentials; and checks of whole rows
// for NaN and infinity.
#pragma once

#include "vec.h"

namespace danet {
namespace {

template <typename A>
DANET_INLINE bool any(Mask<A> mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_epi8((__m256i)mask) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_epi8((__m128i)mask) != 0;
#else
  bool result = false;
  for (int i = 0; i < kLanes<A>; ++i) result |= mask[i] != 0;
  return result;
#endif
}

// max(a, low) and min(a, high); a NaN in a is kept, as in torch.clamp.
template <typename V, typename B>
DANET_INLINE V clamp_min(V a, B low) {
#if defined(__AVX512F__)  // the instruction returns its second operand if one of them is NaN
  if constexpr (std::is_same<V, Vec<float>>::value) return (V)_mm512_max_ps((__m512)(float(low) - V{}), (__m512)a);
#endif
  return a < low ? low - V{} : a;
}
template <typename V, typename B>
DANET_INLINE V clamp_max(V a, B high) {
#if defined(__AVX512F__)
  if constexpr (std::is_same<V, Vec<float>>::value) return (V)_mm512_min_ps((__m512)(float(high) - V{}), (__m512)a);
#endif
  return a > high ? high - V{} : a;
}
// |v|
DANET_INLINE Vec<float> magnitude(Vec<float> v) { return (Vec<float>)((Bits<float>)v & 0x7fffffffu); }
DANET_INLINE Vec<double> magnitude(Vec<double> v) { return (Vec<double>)((Bits<double>)v & 0x7fffffffffffffffu); }

// The floor of every lane as an integer and, in `whole`, as a floating-point value; |v| < 2^31.
template <typename A>
DANET_INLINE IntVec<A> floor(Vec<A> v, Vec<A>& whole) {
#if defined(__AVX512F__)
  constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  IntVec<A> integer;
  if constexpr (sizeof(A) == 4)
    integer = (IntVec<A>)_mm512_cvt_roundps_epi32((__m512)v, kDown);
  else
    integer = (IntVec<A>)_mm512_cvt_roundpd_epi32((__m512d)v, kDown);
  whole = __builtin_convertvector(integer, Vec<A>);
  return integer;
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 4)
    whole = (Vec<A>)_mm256_floor_ps((__m256)v);
  else
    whole = (Vec<A>)_mm256_floor_pd((__m256d)v);
  return __builtin_convertvector(whole, IntVec<A>);
#else
  whole = __builtin_convertvector(__builtin_convertvector(v, IntVec<A>), Vec<A>);
  whole = whole > v ? whole - A(1) : whole;
  return __builtin_convertvector(whole, IntVec<A>);
#endif
}

// The maximum of a and b in every lane. V is a vector of unsigned integers.
template <typename V>
DANET_INLINE V unsigned_max(V a, V b) {
  return a > b ? a : b;
}

// v clamped to [low, high]; NaN becomes low.
template <typename A>
DANET_INLINE Vec<A> clamp(Vec<A> v, A low, A high) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4)
    return (Vec<A>)_mm512_min_ps(_mm512_max_ps((__m512)v, _mm512_set1_ps(low)), _mm512_set1_ps(high));
  else
    return (Vec<A>)_mm512_min_pd(_mm512_max_pd((__m512d)v, _mm512_set1_pd(low)), _mm512_set1_pd(high));
#else
  v = v > low ? v : broadcast<A>(low);
  return v < high ? v : broadcast<A>(high);
#endif
}

DANET_INLINE Vec<double> exp(Vec<double> v) {
  for (int i = 0; i < kLanes<double>; ++i) v[i] = __builtin_exp(v[i]);
  return v;
}
DANET_INLINE Vec<double> exp_unchecked(Vec<double> v) { return exp(v); }
// exp without range checks: requires |v| <= 87; relative error below 1e-7.
DANET_INLINE Vec<float> exp_unchecked(Vec<float> v) {
  // exp(v) = 2^n exp(r) with r = v - n ln 2 in [-0.35, 0.35]; ln 2 is split into two parts for precision. Adding 1.5 *
  // 2^23 rounds to an integer n, which is then in the low bits of the sum and is shifted into the exponent. exp(r) is a
  // minimax polynomial of the relative error.
  Vec<float> sum = v * 1.44269504f + 0x1.8p23f, n = sum - 0x1.8p23f;
  Vec<float> r = v - n * 0.693359375f + n * 2.12194440e-4f;
  Vec<float> p = r * 1.3814468730e-3f + 8.3687803743e-3f;
  p = p * r + 4.1668394180e-2f;
  p = p * r + 1.6666520108e-1f;
  p = p * r + 4.9999993413e-1f;
  p = p * (r * r) + r + 1.0f;
  return (Vec<float>)((Bits<float>)p + ((Bits<float>)sum << 23));
}
// 2^v for v <= 127, with a relative error below 8e-5; 0 for very small v, NaN for NaN.
DANET_INLINE Vec<float> exp2_fast(Vec<float> v) {
#if defined(__AVX512F__)
  const Vec<float> fraction = (Vec<float>)_mm512_reduce_ps((__m512)v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
  const Vec<float> bounded = clamp<float>(v, -150, 127);
  Vec<float> whole;
  const IntVec<float> integer = floor<float>(bounded, whole);
  const Vec<float> fraction = bounded - whole;
#endif
  // A minimax polynomial of the relative error on [0, 1]
  Vec<float> p = fraction * 7.802452e-2f + 2.2606716e-1f;
  p = p * fraction + 6.9583353e-1f;
  p = p * fraction + 9.9992522e-1f;
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_scalef_ps((__m512)p, (__m512)v);  // p * 2^floor(v)
#else
  const Bits<float> scaled = (Bits<float>)p + ((Bits<float>)integer << 23);
  return v != v ? v : v < -126.0f ? Vec<float>{} : (Vec<float>)scaled;
#endif
}
// exp of any value: 0 below -87, infinity above 88, NaN for NaN.
DANET_INLINE Vec<float> exp(Vec<float> v) {
  Vec<float> p = exp_unchecked(v);
  p = v < -87.0f ? Vec<float>{} : v != v ? v : p;
  return v > 88.0f ? broadcast<float>(__builtin_inff()) : p;
}

// --- rows ----------------------------------------------------------------------------------------------------------

template <typename T>
DANET_INLINE bool any_nan(const T* values, int64_t C) {
  using A = Compute<T>;
  Mask<A> nan{};
  for_vectors_of<A>(C, [&](int64_t c, int count) __attribute__((always_inline)) {
    const Vec<A> v = load_channels(values + c, count);
    nan |= v != v;
  });
  return any<A>(nan);
}

template <typename T>
DANET_INLINE bool all_finite(const T* values, int64_t C) {
  using A = Compute<T>;
  Mask<A> other{};
  for_vectors_of<A>(C, [&](int64_t c, int count) __attribute__((always_inline)) {
    const Vec<A> v = load_channels(values + c, count), zero = v - v;
    other |= zero != zero;
  });
  return !any<A>(other);
}

}  // namespace
}  // namespace danet
