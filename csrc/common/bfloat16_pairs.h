// Pairs of bfloat16 values: every 32-bit lane of a vector holds one value in its low half and one in its high half.
// AVX512_BF16 has an instruction that multiplies two such vectors and adds both products of a lane to a float32 sum.
#pragma once

#include "vec.h"

namespace danet {
namespace {

DANET_INLINE U32 pair_bfloat16(U16 low, U16 high) {
#if defined(__AVX512F__)  // the compiler would convert in two halves
  return (U32)_mm512_or_si512(
      _mm512_cvtepu16_epi32((__m256i)low), _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)high), 16));
#else
  return __builtin_convertvector(low, U32) | __builtin_convertvector(high, U32) << 16;
#endif
}
// The same for values that are first rounded to bfloat16.
DANET_INLINE U32 pair_bfloat16(Vec<float> low, Vec<float> high) {
#if defined(__AVX512BF16__)
  alignas(64) static constexpr uint16_t kAlternating[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                            21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                            11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  return (U32)_mm512_permutexvar_epi16(_mm512_load_si512(kAlternating), both);
#else
  return pair_bfloat16(narrow_to_bfloat16(low), narrow_to_bfloat16(high));
#endif
}
// sum + a.low * b.low + a.high * b.high in every lane.
DANET_INLINE Vec<float> add_pair_products(Vec<float> sum, U32 a, U32 b) {
#if defined(__AVX512BF16__)
  return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  sum += (Vec<float>)(a & 0xffff0000u) * (Vec<float>)(b & 0xffff0000u);
  return sum + (Vec<float>)(a << 16) * (Vec<float>)(b << 16);
#endif
}

}  // namespace
}  // namespace danet
