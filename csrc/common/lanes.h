// Lane permutations within and between vectors, and horizontal sums.
#pragma once

#include <utility>

#include "vec.h"

namespace danet {
namespace {

// pick<Lanes>(a, b): a shuffle whose result lane i is lane Lanes::lane(i, L) of the concatenation of a and b.

template <typename Lanes, typename V, int... I>
DANET_INLINE V pick_lanes(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, Lanes::lane(I, int(sizeof...(I)))...);
}
template <typename Lanes, typename V>
DANET_INLINE V pick(V a, V b) {
  return pick_lanes<Lanes>(a, b, std::make_integer_sequence<int, int(sizeof(V) / sizeof(a[0]))>{});
}

struct EvenLanes {
  static constexpr int lane(int i, int) { return 2 * i; }
};
struct OddLanes {
  static constexpr int lane(int i, int) { return 2 * i + 1; }
};
struct InterleavedLow {
  static constexpr int lane(int i, int L) { return i / 2 + i % 2 * L; }
};
struct InterleavedHigh {
  static constexpr int lane(int i, int L) { return L / 2 + i / 2 + i % 2 * L; }
};
// Splits the concatenation of a and b into Parts runs, and takes the first (Upper = 0) or second half of every run.
template <int Parts, int Upper>
struct Halves {
  static constexpr int lane(int i, int L) {
    int part = L / Parts;
    return i / part * 2 * part + Upper * part + i % part;
  }
};
template <int Distance>
struct Exchanged {
  static constexpr int lane(int i, int) { return i ^ Distance; }
};
struct EveryQuarter {
  static constexpr int lane(int i, int L) { return i % 4 * (L / 4); }
};

#if defined(__AVX512F__)
// Broadcasts lane index[0] of v. Exists where kHasBroadcastLane: there it is cheaper than a broadcast from memory.
template <typename A>
constexpr bool kHasBroadcastLane = sizeof(A) == 4;
DANET_INLINE Vec<float> broadcast_lane(Vec<float> v, IntVec<float> index) {
  return (Vec<float>)_mm512_permutexvar_ps((__m512i)index, (__m512)v);
}
#else
template <typename A>
constexpr bool kHasBroadcastLane = false;
#endif

template <typename A>
using Vec4 = typename VecOf<A, 4>::type;

// Partial sums of four vectors in one: the lanes of quarter i of the result add up to the sum of vector i. L >= 4.
template <typename A>
DANET_INLINE Vec<A> to_quarters(Vec<A> a, Vec<A> b, Vec<A> c, Vec<A> d) {
  const Vec<A> ab = pick<Halves<2, 0>>(a, b) + pick<Halves<2, 1>>(a, b);
  const Vec<A> cd = pick<Halves<2, 0>>(c, d) + pick<Halves<2, 1>>(c, d);
  return pick<Halves<4, 0>>(ab, cd) + pick<Halves<4, 1>>(ab, cd);
}

// The horizontal sums of four vectors, for about the cost of two.
template <typename A>
DANET_INLINE Vec4<A> sum_lanes(Vec<A> a, Vec<A> b, Vec<A> c, Vec<A> d) {
  constexpr int L = kLanes<A>;
  if constexpr (L == 2) {
    return Vec4<A>{a[0] + a[1], b[0] + b[1], c[0] + c[1], d[0] + d[1]};
  } else {
    Vec<A> sums = to_quarters<A>(a, b, c, d);
    if constexpr (L >= 16) sums += pick<Exchanged<2>>(sums, sums);
    if constexpr (L >= 8) sums += pick<Exchanged<1>>(sums, sums);
    sums = pick<EveryQuarter>(sums, sums);
    return bits_as<Vec4<A>>(&sums);
  }
}

// From each quarter of a and of b, takes the even (Upper = 0) or odd lanes; quarter i of the result holds those of a's
// quarter i, then those of b's quarter i.
template <int Upper>
struct PairsOfQuarters {
  static constexpr int lane(int i, int L) {
    const int quarter = L / 4, half = quarter / 2, place = i % quarter;
    return place / half * L + i / quarter * quarter + place % half * 2 + Upper;
  }
};

// The horizontal sums of B * 4 vectors with the minimum number of steps: lane i * B + b of the result is the sum of
// v[b][i]. B is a quarter of the number of lanes, or 1 if there are fewer than four lanes.
template <typename A, int B>
DANET_INLINE typename VecOf<A, 4 * B>::type sum_lanes(const Vec<A> (&v)[B][4]) {
  constexpr int L = kLanes<A>;
  if constexpr (L == 2) {
    return sum_lanes<A>(v[0][0], v[0][1], v[0][2], v[0][3]);
  } else {
    static_assert(B == L / 4);
    Vec<A> sums[B];
    for (int b = 0; b < B; ++b) sums[b] = to_quarters<A>(v[b][0], v[b][1], v[b][2], v[b][3]);
    if constexpr (B > 1)
      for (int count = B; count > 1; count /= 2)
        for (int b = 0; b < count / 2; ++b)
          sums[b] = pick<PairsOfQuarters<0>>(sums[2 * b], sums[2 * b + 1]) +
                    pick<PairsOfQuarters<1>>(sums[2 * b], sums[2 * b + 1]);
    return sums[0];
  }
}

// Transposes quarters: quarter[i] consists of quarter i of a, b, c and d. Vectors of two lanes are treated as two
// pairs, (a, b) and (c, d), of four lanes each.
template <typename V>
DANET_INLINE void transpose_quarters(V a, V b, V c, V d, V (&quarter)[4]) {
  constexpr int L = int(sizeof(V) / sizeof(a[0])), kParts = L < 4 ? L : 4;
  using First = Halves<kParts, 0>;
  using Second = Halves<kParts, 1>;
  const V first = pick<First>(a, b), second = pick<First>(c, d);
  quarter[0] = pick<First>(first, second);
  quarter[2] = pick<Second>(first, second);
  const V third = pick<Second>(a, b), fourth = pick<Second>(c, d);
  quarter[1] = pick<First>(third, fourth);
  quarter[3] = pick<Second>(third, fourth);
}

// The sum of all lanes, in pairs of lanes, then of pairs, and so on.
template <typename A>
DANET_INLINE A sum_lanes(Vec<A> v) {
  constexpr int L = kLanes<A>;
  if constexpr (L >= 16) v += pick<Exchanged<8>>(v, v);
  if constexpr (L >= 8) v += pick<Exchanged<4>>(v, v);
  if constexpr (L >= 4) v += pick<Exchanged<2>>(v, v);
  return v[0] + v[1];
}

}  // namespace
}  // namespace danet
