// Tables of taps in shared memory. The threads of a block of SDC's forward kernel (sdc_forward.cuh) set the taps, then
// read them for every packet of channels.
#pragma once

#include "../common/ptx.cuh"
#include "sdc_taps.cuh"

namespace danet {
namespace {

// Linear interpolation along one axis of the image, between index `first` and the next one.
template <typename A>
struct AxisWeights {
  int32_t first;
  A weight[2];

  // `first` is clamped, so that both indices lie in the image and can be read without a check. The weight of an index
  // is max(0, 1 - its distance from position): an index that is not next to the position gets zero. If size is 1, only
  // the first index has a weight. NaN gives zeros.
  GPU_DEVICE AxisWeights(A position, int32_t size) {
    const A second = size > 1 ? A(1) : A(INFINITY);
    first = int32_t(min(gpu::floor_to_unsigned(position), uint32_t(max(size - 2, 0))));
    const A distance = position - A(first);
    weight[0] = gpu::saturate(1 - std::abs(distance)), weight[1] = gpu::saturate(1 - std::abs(second - distance));
  }
};

// The cell that a tap samples: the weights of its corners (top left, top right, bottom left, bottom right) and its
// place.
template <typename A>
struct WeightedCell {
  A weight[4];
  uint32_t pixel;  // y * W + x of the top left corner

  // The cell at (y, x) of an image of H x W pixels; the sum of the weights is m, unless corners lie outside.
  GPU_DEVICE WeightedCell(A y, A x, int32_t H, int32_t W, A m) {
    const AxisWeights<A> rows(y, H), columns(x, W);
    const A top = m * rows.weight[0], bottom = m * rows.weight[1];
    weight[0] = top * columns.weight[0], weight[1] = top * columns.weight[1];
    weight[2] = bottom * columns.weight[0], weight[3] = bottom * columns.weight[1];
    pixel = uint32_t(rows.first * W + columns.first);
  }
  GPU_DEVICE WeightedCell(const CornerWeights<A>& weights, uint32_t pixel)
      : weight{weights.weight[0], weights.weight[1], weights.weight[2], weights.weight[3]}, pixel(pixel) {}
};

// The cells of `size` taps. They are computed once, when they are set: fast to read, 20 bytes per tap in float.
template <typename A>
class CellTable {
  CornerWeights<A>* weights_;
  uint32_t* pixels_;

 public:
  static constexpr int kBytes = int(sizeof(CornerWeights<A>) + sizeof(uint32_t));  // per tap

  // The table lies at `memory`, which is aligned to sizeof(CornerWeights<A>).
  GPU_DEVICE CellTable(void* memory, int size)
      : weights_(static_cast<CornerWeights<A>*>(memory)), pixels_(reinterpret_cast<uint32_t*>(weights_ + size)) {}
  // The memory of the weights of tap i and the following ones, sizeof(CornerWeights) bytes each. It may be used for
  // something else until these taps are set.
  GPU_DEVICE void* memory(int i) const { return weights_ + i; }
  GPU_DEVICE void set(int i, A y, A x, int32_t H, int32_t W, A m) const {
    const WeightedCell<A> cell(y, x, H, W, m);
    gpu::store_shared(weights_[i].weight, cell.weight[0], cell.weight[1], cell.weight[2], cell.weight[3]);
    pixels_[i] = cell.pixel;
  }
  GPU_DEVICE WeightedCell<A> get(int i, int32_t, int32_t) const { return {weights_[i], pixels_[i]}; }
};

// The same in 12 bytes per tap: the position and m. Every thread that reads a tap computes its cell.
class PositionTable {
  using Pair = gpu::AlignedArray<float, 2>;
  Pair* m_and_y_;
  float* x_;

 public:
  static constexpr int kBytes = int(sizeof(Pair) + sizeof(float));

  GPU_DEVICE PositionTable(void* memory, int size)
      : m_and_y_(static_cast<Pair*>(memory)), x_(reinterpret_cast<float*>(m_and_y_ + size)) {}
  GPU_DEVICE void set(int i, float y, float x, int32_t, int32_t, float m) const {
    m_and_y_[i] = {m, y};
    x_[i] = x;
  }
  GPU_DEVICE WeightedCell<float> get(int i, int32_t H, int32_t W) const {
    const Pair m_and_y = m_and_y_[i];
    return {m_and_y.values[1], x_[i], H, W, m_and_y.values[0]};
  }
};

}  // namespace
}  // namespace danet
