// SIMD vectors of the widest registers that this compilation may use, as GCC and Clang vector types: the operators
// + - * / < ?: act on all lanes and accept scalars. Every kernels file is compiled once per instruction set
// (CMakeLists.txt). Everything here is in an anonymous namespace, so that the linker cannot merge a function that was
// compiled for AVX-512 into code for older processors.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "types.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define DANET_INLINE inline __attribute__((always_inline))

namespace danet {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename E, int L>
struct VecOf {
  typedef E type __attribute__((vector_size(L * sizeof(E))));
};

template <typename A>
constexpr int kLanes = kVectorBytes / int(sizeof(A));
template <typename A>
using Vec = typename VecOf<A, kLanes<A>>::type;
// int32 vector with as many lanes as Vec<A>.
template <typename A>
using IntVec = typename VecOf<int32_t, kLanes<A>>::type;
// The result of comparing two Vec<A>: -1 or 0 per lane.
template <typename A>
using Mask = decltype(Vec<A>{} < Vec<A>{});
// Unsigned integers of the size of A (Bits) or of 32 bits (UIntVec), with as many lanes as Vec<A>.
template <typename A>
using Bits = typename VecOf<typename std::conditional<sizeof(A) == 4, uint32_t, uint64_t>::type, kLanes<A>>::type;
template <typename A>
using UIntVec = typename VecOf<uint32_t, kLanes<A>>::type;

template <typename A>
DANET_INLINE Vec<A> broadcast(A value) {
  return value - Vec<A>{};
}

// a * b + c as a fused multiply-add where the instruction set has one.
// NOTE: for a plain a * b + c, the compiler decides in each loop whether to fuse it. Sums that must be bit-identical in
// different loops use this function.
template <typename A>
DANET_INLINE Vec<A> multiply_add(Vec<A> a, Vec<A> b, Vec<A> c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) return (Vec<A>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  if constexpr (sizeof(A) == 8) return (Vec<A>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__) && defined(__FMA__)
  if constexpr (sizeof(A) == 4) return (Vec<A>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  if constexpr (sizeof(A) == 8) return (Vec<A>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__FP_FAST_FMAF) && defined(__FP_FAST_FMA)
  for (int i = 0; i < kLanes<A>; ++i)
    c[i] = sizeof(A) == 4 ? A(__builtin_fmaf(a[i], b[i], c[i])) : A(__builtin_fma(a[i], b[i], c[i]));
  return c;
#else
  return a * b + c;
#endif
}

template <typename V>
DANET_INLINE V bits_as(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// --- scalars of the storage types ---------------------------------------------------------------------------------

DANET_INLINE float to_compute(float value) { return value; }
DANET_INLINE double to_compute(double value) { return value; }
DANET_INLINE float to_compute(BFloat16 value) {
  uint32_t bits = uint32_t(value.bits) << 16;
  return bits_as<float>(&bits);
}
// Half conversions in software, for processors without F16C. V: float or a vector of floats; U: the unsigned integers
// of the same size and number of lanes.
template <typename V, typename U>
DANET_INLINE V half_to_float(U half) {
  // A multiplication rebases the exponent, which also normalizes subnormals; infinity and NaN need its top bits set.
  const U magnitude = (half & 0x7fffu) << 13;
  const V scaled = bits_as<V>(&magnitude) * 0x1p112f;
  U bits = bits_as<U>(&scaled);
  bits = magnitude < 0x0f800000u ? bits : bits | 0x7f800000u;
  bits |= (half & 0x8000u) << 16;
  return bits_as<V>(&bits);
}
template <typename U, typename V>
DANET_INLINE U float_to_half(V value) {
  const U bits = bits_as<U>(&value), magnitude = bits & 0x7fffffffu;
  const V sum = bits_as<V>(&magnitude) + 0.5f;  // for subnormals: the addition rounds
  U half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  half = magnitude < 0x38800000u ? bits_as<U>(&sum) - 0x3f000000u : half;
  half = magnitude < 0x477ff000u ? half : half * 0u + 0x7c00u;  // rounds beyond 65504
  half = magnitude > 0x7f800000u ? half * 0u + 0x7e00u : half;
  return half | (bits >> 16 & 0x8000u);
}
DANET_INLINE float to_compute(Half value) {
#if defined(__F16C__)
  return _cvtsh_ss(value.bits);
#else
  return half_to_float<float>(uint32_t(value.bits));
#endif
}

template <typename T>
DANET_INLINE T from_compute(Compute<T> value);
template <>
DANET_INLINE float from_compute<float>(float value) {
  return value;
}
template <>
DANET_INLINE double from_compute<double>(double value) {
  return value;
}
template <>
DANET_INLINE BFloat16 from_compute<BFloat16>(float value) {
  uint32_t bits = bits_as<uint32_t>(&value);
  if (value != value) return {uint16_t(bits >> 16 | 0x40)};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to nearest, ties to even
}
template <>
DANET_INLINE Half from_compute<Half>(float value) {
#if defined(__F16C__)
  return {uint16_t(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT))};
#else
  return {uint16_t(float_to_half<uint32_t>(value))};
#endif
}

// --- loads and stores: kLanes<Compute<T>> consecutive values, any alignment ---------------------------------------

// 16-bit and 32-bit unsigned vectors with as many lanes as Vec<float>.
using U16 = typename VecOf<uint16_t, kLanes<float>>::type;
using U32 = typename VecOf<uint32_t, kLanes<float>>::type;

template <typename T>
DANET_INLINE Vec<Compute<T>> load(const T* p) {
  return bits_as<Vec<T>>(p);
}
DANET_INLINE Vec<float> widen_bfloat16(U16 bits) { return (Vec<float>)(__builtin_convertvector(bits, U32) << 16); }
// Rounds to the nearest value, ties to even. NOTE: the instruction of AVX512_BF16 replaces subnormal values by zero.
DANET_INLINE U16 narrow_to_bfloat16(Vec<float> v) {
#if defined(__AVX512BF16__)
  return (U16)_mm512_cvtneps_pbh((__m512)v);
#else
  const U32 bits = (U32)v, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return __builtin_convertvector(v != v ? (bits >> 16 | 0x40) : rounded, U16);
#endif
}
template <>
DANET_INLINE Vec<float> load(const BFloat16* p) {
  return widen_bfloat16(bits_as<U16>(p));
}

template <>
DANET_INLINE Vec<float> load(const Half* p) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__) && defined(__AVX2__)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  return half_to_float<Vec<float>>(__builtin_convertvector(bits_as<U16>(p), U32));
#endif
}

template <typename T>
DANET_INLINE void store(T* p, Vec<Compute<T>> v) {
  std::memcpy(p, &v, sizeof v);
}
template <>
DANET_INLINE void store(BFloat16* p, Vec<float> v) {
  const U16 narrow = narrow_to_bfloat16(v);
  std::memcpy(p, &narrow, sizeof narrow);
}
template <>
DANET_INLINE void store(Half* p, Vec<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__) && defined(__AVX2__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  const U16 narrow = __builtin_convertvector(float_to_half<U32>(v), U16);
  std::memcpy(p, &narrow, sizeof narrow);
#endif
}

// Stores two successive vectors.
template <typename T>
DANET_INLINE void store_two(T* p, Vec<Compute<T>> first, Vec<Compute<T>> second) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same<T, BFloat16>::value) {  // one conversion and one store of a whole cache line
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
    return;
  }
#endif
  store(p, first);
  store(p + kLanes<Compute<T>>, second);
}

// Loads or stores the first `count` lanes; load_first sets the others to zero. Memory beyond them is not accessed.
// NOTE: not inlined, except where the instruction set has masked loads: the inlined loops would be most of the
// library's size and compile time.
template <typename T>
__attribute__((noinline)) Vec<Compute<T>> load_first(const T* p, int64_t count) {
  T lanes[kLanes<Compute<T>>] = {};
  for (int i = 0; i < kLanes<Compute<T>>; ++i)
    if (i < count) lanes[i] = p[i];
  return load(lanes);
}
template <typename T>
__attribute__((noinline)) void store_first(T* p, Vec<Compute<T>> v, int64_t count) {
  T lanes[kLanes<Compute<T>>];
  store(lanes, v);
  for (int i = 0; i < kLanes<Compute<T>>; ++i)
    if (i < count) p[i] = lanes[i];
}
#if defined(__AVX512F__)
template <>
DANET_INLINE Vec<float> load_first(const float* p, int64_t count) {
  return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
}
template <>
DANET_INLINE void store_first(float* p, Vec<float> v, int64_t count) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), (__m512)v);
}
template <>
DANET_INLINE Vec<float> load_first(const BFloat16* p, int64_t count) {
  return widen_bfloat16((U16)_mm256_maskz_loadu_epi16(__mmask16((1u << count) - 1), p));
}
template <>
DANET_INLINE void store_first(BFloat16* p, Vec<float> v, int64_t count) {
  _mm256_mask_storeu_epi16(p, __mmask16((1u << count) - 1), (__m256i)narrow_to_bfloat16(v));
}
template <>
DANET_INLINE Vec<float> load_first(const Half* p, int64_t count) {
  return (Vec<float>)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(__mmask16((1u << count) - 1), p));
}
template <>
DANET_INLINE void store_first(Half* p, Vec<float> v, int64_t count) {
  const __m256i narrow = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
  _mm256_mask_storeu_epi16(p, __mmask16((1u << count) - 1), narrow);
}
#elif defined(__AVX2__)
DANET_INLINE __m256i first_lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
template <>
DANET_INLINE Vec<float> load_first(const float* p, int64_t count) {
  return (Vec<float>)_mm256_maskload_ps(p, first_lanes(count));
}
template <>
DANET_INLINE void store_first(float* p, Vec<float> v, int64_t count) {
  _mm256_maskstore_ps(p, first_lanes(count), (__m256)v);
}
#endif

// Optimization barrier: hides the pointer's value from the compiler, so that it uses base + displacement addressing
// instead of one register for each unrolled address.
template <typename T>
DANET_INLINE T* opaque_pointer(T* p) {
  asm("" : "+r"(p));
  return p;
}

// Loads or stores the first `count` lanes, or all lanes if count is 0.
template <typename T>
DANET_INLINE Vec<Compute<T>> load_channels(const T* p, int count) {
  return count == 0 ? load(p) : load_first(p, count);
}
template <typename T>
DANET_INLINE void store_channels(T* p, Vec<Compute<T>> v, int count) {
  count == 0 ? store(p, v) : store_first(p, v, count);
}

// Calls body(c, count) for every vector of C channels; count is 0 for full vectors, else the number of remaining
// channels.
template <typename A, typename Body>
DANET_INLINE void for_vectors_of(int64_t C, const Body& body) {
  int64_t c = 0;
  for (; c + kLanes<A> <= C; c += kLanes<A>) body(c, 0);
  if (c < C) body(c, int(C - c));
}

// Stores min(count, kLanes) lanes; nothing if count <= 0.
template <typename T>
DANET_INLINE void store_up_to(T* p, Vec<Compute<T>> v, int64_t count) {
  if (count >= kLanes<Compute<T>>)
    store(p, v);
  else if (count > 0)
    store_first(p, v, count);
}

template <typename T>
DANET_INLINE Vec<Compute<T>> load_up_to(const T* p, int64_t count) {
  if (count >= kLanes<Compute<T>>) return load(p);
  return count > 0 ? load_first(p, count) : Vec<Compute<T>>{};
}

// Sets the lanes from `count` on to zero.
template <typename A>
DANET_INLINE Vec<A> keep_first(Vec<A> v, int count) {
  Mask<A> lane;
  for (int i = 0; i < kLanes<A>; ++i) lane[i] = i;
  return lane < count ? v : Vec<A>{};
}

// Selects the instance of the variable template `tables` for a DType.
#define DANET_PICK_TYPE(tables, dtype) \
  (dtype == DType::kDouble ? tables<double> : dtype == DType::kHalf ? tables<Half> \
   : dtype == DType::kBFloat16 ? tables<BFloat16> : tables<float>)

}  // namespace
}  // namespace danet
