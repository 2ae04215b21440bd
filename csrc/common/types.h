// Storage types without arithmetic. All kernels convert a storage type T to Compute<T> (float, or double for double)
// and compute in it; they abbreviate A = Compute<T>.
#pragma once

#include <cstdint>

namespace danet {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <typename T>
using Compute = typename ComputeOf<T>::type;

}  // namespace danet
