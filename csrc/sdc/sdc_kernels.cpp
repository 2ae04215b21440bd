// The table of SDC's CPU kernels. sdc_forward.h and sdc_backward.h have the kernels themselves.
#include "sdc_backward.h"
#include "sdc_forward.h"

namespace danet {
namespace {

// SdcKernels::find_row_ranges.
template <typename T>
void find_row_ranges(const SdcParams& p, ImageView offset, int64_t begin, int64_t end, int32_t (*row_ranges)[2]) {
  using A = Compute<T>;
  constexpr int L = kLanes<A>;
  TapTable<A> taps(p);
  JoinedGroups<T> joined(p);
  const A scale = A(p.offset_scale), H = A(p.H);
  for (int64_t row = begin; row < end; ++row) {
    int64_t n = row / p.H_out, y = row % p.H_out;
    const A center = A(sdc_center(p, 0)) + A(y * p.stride[0]);
    // Find the smallest and the largest Y of the row's taps, in each lane.
    Vec<A> lowest = broadcast<A>(H), highest = broadcast<A>(-2);
    for (int64_t x = 0; x < p.W_out; ++x)
      for (int64_t g = 0; g < p.G; g += taps.groups) {
        const int64_t groups = g + taps.groups <= p.G ? taps.groups : p.G - g, num_taps = groups * p.K;
        const T* group_offsets = offset.pixel<T>(n, y * p.W_out + x) + g * p.offset_group_stride;
        PaddedValues<T, 2 * L> offsets(joined.offsets_of(p, group_offsets, groups), 2 * num_taps);
        for_vectors<L>(num_taps < L ? L : num_taps, [&](int64_t j) {
          Vec<A> dy, dx;
          load_offsets<A>(p, offsets.values, j, dy, dx);
          Vec<A> y_sample = (load(taps.tap_y + j) + center) + scale * dy;
          lowest = y_sample < lowest ? y_sample : lowest;
          highest = y_sample > highest ? y_sample : highest;
        });
      }
    // Reduce over the lanes.
    A low = H, high = -2;
    for (int i = 0; i < L; ++i) {
      low = lowest[i] < low ? lowest[i] : low;
      high = highest[i] > high ? highest[i] : high;
    }
    // Clip to the image, and convert to rows. A sample at Y reads rows floor(Y) and floor(Y) + 1.
    low = low < 0 ? 0 : low;
    high = high > H - 1 ? H - 1 : high;
    row_ranges[row][0] = int32_t(low);
    row_ranges[row][1] = high < -1 ? -1 : int32_t(high + 1) < int32_t(H) ? int32_t(high + 1) : int32_t(H) - 1;
  }
}

template <typename T>
constexpr SdcKernels kKernels = {forward<T>, find_row_ranges<T>, backward<T>};

}  // namespace

const SdcKernels& DANET_ISA::sdc_kernels(DType dtype) { return DANET_PICK_TYPE(kKernels, dtype); }

}  // namespace danet
