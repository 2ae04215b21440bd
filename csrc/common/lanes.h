// Lanes that change places, within a vector and between vectors, and sums over them.
#pragma once

#include <utility>

#include "vec.h"

namespace danet {
namespace {

// Lanes of two vectors by constant numbers: lane i of a is i, lane i of b is L + i.

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
// Every run of 2 * Part lanes of both vectors has two halves; the first (Upper = 0) or second ones, one after the other.
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
// Lane `index`[0] of v in all lanes; where kHasBroadcastLane, this costs less than to read it from memory again.
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
using Four = typename VecOf<A, 4>::type;

// Of four vectors: a quarter of the lanes for each, whose sums are those of all its lanes. L >= 4.
template <typename A>
DANET_INLINE Vec<A> to_quarters(Vec<A> a, Vec<A> b, Vec<A> c, Vec<A> d) {
  const Vec<A> ab = pick<Halves<2, 0>>(a, b) + pick<Halves<2, 1>>(a, b);
  const Vec<A> cd = pick<Halves<2, 0>>(c, d) + pick<Halves<2, 1>>(c, d);
  return pick<Halves<4, 0>>(ab, cd) + pick<Halves<4, 1>>(ab, cd);
}

// The sums of the lanes of four vectors, at the price of two.
template <typename A>
DANET_INLINE Four<A> sum_lanes(Vec<A> a, Vec<A> b, Vec<A> c, Vec<A> d) {
  constexpr int L = kLanes<A>;
  if constexpr (L == 2) {
    return Four<A>{a[0] + a[1], b[0] + b[1], c[0] + c[1], d[0] + d[1]};
  } else {
    Vec<A> sums = to_quarters<A>(a, b, c, d);
    if constexpr (L >= 16) sums += pick<Exchanged<2>>(sums, sums);
    if constexpr (L >= 8) sums += pick<Exchanged<1>>(sums, sums);
    sums = pick<EveryQuarter>(sums, sums);
    return bits_as<Four<A>>(&sums);
  }
}

// Every quarter of the lanes of both vectors has two halves, whole pairs' first (Upper = 0) or second lanes: those of a,
// then those of b.
template <int Upper>
struct PairsOfQuarters {
  static constexpr int lane(int i, int L) {
    const int quarter = L / 4, half = quarter / 2, place = i % quarter;
    return place / half * L + i / quarter * quarter + place % half * 2 + Upper;
  }
};

// The sums of the lanes of B * 4 vectors in as few steps as there can be: of the first of every four for b = 0, 1, ..., of
// the second ones, ... B: a quarter of the lanes, or 1 where there are less than four lanes.
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

// The quarters of four vectors: all first ones to quarter[0], all second ones to quarter[1], ... Of vectors of two lanes,
// what each two of them hold together counts as one.
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

// The sum of all lanes.
template <typename A>
DANET_INLINE A sum_lanes(Vec<A> v) {
  A sum = v[0];
  for (int i = 1; i < kLanes<A>; ++i) sum += v[i];
  return sum;
}

}  // namespace
}  // namespace danet
