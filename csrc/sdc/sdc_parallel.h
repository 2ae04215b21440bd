// The backward pass of a whole call on the CPU, split among threads: torch's (sdc_cpu.cpp) or those of the C++ library
// (csrc/plain).
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>

#include "sdc.h"

namespace danet {
namespace {

// Writes grad_input, grad_offset and grad_mask. grad_input is contiguous and of the compute dtype, whose size is
// element_bytes. parallel(count, cost, body) must run body(begin, end) for parts that cover [0, count), on up to
// `threads` threads; cost is the number of elementary operations per index.
//
// Only one thread writes to a given row of grad_input. It adds the contributions in the order of the output pixels, so
// the result does not depend on the number of threads. The same thread writes grad_offset and grad_mask of its share of
// the output rows.
template <typename Parallel>
void backward_in_bands(
    const SdcParams& p, const SdcKernels& kernels, const ImageView& grad_output, const ImageView& input,
    const ImageView& offset, const ImageView& mask, const ImageView& grad_input, const ImageView& grad_offset,
    const ImageView& grad_mask, int64_t element_bytes, int64_t threads, const Parallel& parallel) {
  // Split every image into bands of rows, so that each thread gets the same number of bands.
  const int64_t bands = p.N == 0 ? 1 : std::min(threads / std::gcd(p.N, threads), std::min(p.H, p.H_out));
  // Find the input rows that each output row samples, so that a band can skip most output rows.
  std::unique_ptr<int32_t[][2]> row_ranges;
  if (bands > 1) {
    row_ranges.reset(new int32_t[p.N * p.H_out][2]);
    parallel(p.N * p.H_out, p.W_out * p.G * p.K, [&](int64_t begin, int64_t end) {
      kernels.find_row_ranges(p, offset, begin, end, row_ranges.get());
    });
  }
  // Clear and fill each band. The maximum cost tells `parallel` that each band may run on its own thread.
  parallel(p.N * bands, std::numeric_limits<int64_t>::max(), [&](int64_t begin, int64_t end) {
    for (int64_t band_index = begin; band_index < end; ++band_index) {
      const int64_t n = band_index / bands, band = band_index % bands;
      const int64_t first = p.H * band / bands, last = p.H * (band + 1) / bands;
      std::memset(
          grad_input.pixel<char>(0, 0) + (n * p.H + first) * p.W * p.C * element_bytes, 0,
          size_t((last - first) * p.W * p.C * element_bytes));
      kernels.backward(
          p, grad_output, input, offset, mask, grad_input, grad_offset, grad_mask, n, p.H_out * band / bands,
          p.H_out * (band + 1) / bands, first, last, row_ranges.get());
    }
  });
}

}  // namespace
}  // namespace danet
