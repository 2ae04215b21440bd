// Transposes blocks of 16 x 16 values of 32 bits in the registers of AVX-512.
#pragma once

#include "vec.h"

#if defined(__AVX512F__)
namespace danet {
namespace {

// Transposes the matrix of these 16 rows: first in blocks of 4 x 4 values, then the blocks.
DANET_INLINE void transpose_16(__m512i (&row)[16]) {
  __m512i two[16], four[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    two[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
    two[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    four[i] = _mm512_unpacklo_epi64(two[i], two[i + 2]);
    four[i + 1] = _mm512_unpackhi_epi64(two[i], two[i + 2]);
    four[i + 2] = _mm512_unpacklo_epi64(two[i + 1], two[i + 3]);
    four[i + 3] = _mm512_unpackhi_epi64(two[i + 1], two[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i even_low = _mm512_shuffle_i32x4(four[i], four[4 + i], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(four[i], four[4 + i], 0xdd);
    const __m512i even_high = _mm512_shuffle_i32x4(four[8 + i], four[12 + i], 0x88);
    const __m512i odd_high = _mm512_shuffle_i32x4(four[8 + i], four[12 + i], 0xdd);
    row[i] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    row[4 + i] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    row[8 + i] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
    row[12 + i] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  }
}

}  // namespace
}  // namespace danet
#endif
