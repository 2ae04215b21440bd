// Block size and sigmoid, which the CUDA kernels of LCDC share.
#pragma once

#include <cmath>

#include "../common/ptx.cuh"
#include "lcdc.h"

namespace danet {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// The sigmoid. Half types use two approximate instructions: their relative error of 1e-7 |a| is far below the precision
// of half types, and the accurate version would make the kernels compute-bound.
template <typename T>
GPU_DEVICE Compute<T> sigmoid(Compute<T> a) {
  if constexpr (sizeof(T) == 2) {
    return gpu::fast_reciprocal(1 + gpu::fast_exp2(a * -1.44269504f));
  } else if constexpr (sizeof(T) == 4) {
    // One Newton step makes the approximate reciprocal as exact as a division, without its branch for special cases.
    // The limit keeps the denominator finite; beyond it the sigmoid is below 1e-37.
    const float denominator = 1 + std::exp(a < -85 ? 85.0f : -a);
    const float approximate = gpu::fast_reciprocal(denominator);
    return approximate + approximate * (1 - denominator * approximate);
  } else {
    return 1 / (1 + std::exp(-a));
  }
}

}  // namespace
}  // namespace danet
