// SaFEM on the CPU, as torch calls it: checks, memory, threads. The kernels are in safem_block.h; safem_kernels.cpp
// compiles them for float32, safem_tiles.cpp for bfloat16.
#include <algorithm>
#include <atomic>
#include <optional>
#include <vector>

#include <torch/headeronly/util/BFloat16.h>

#include "../common/threads.h"
#include "../program/program.h"
#include "../sdc/sdc_image.h"
#include "safem_check.h"

namespace danet {
namespace {

using TorchBFloat16 = torch::headeronly::BFloat16;  // with conversions

// The data of a weight tensor, which must be contiguous float32 on the CPU with `count` elements.
const float* floats(const char* op, const char* name, const Tensor& t, int64_t count) {
  DANET_CHECK(
      t.is_cpu() && t.scalar_type() == ScalarType::Float && t.is_contiguous() && t.numel() == count, op, ": ", name,
      " must be a contiguous float32 tensor with ", count, " elements on the CPU");
  return static_cast<const float*>(t.const_data_ptr());
}

// The kernels for images of a dtype: float32, or bfloat16 with AMX or AVX512_BF16.
const SafemKernels& kernels_of(const char* op, ScalarType type) {
  const bool has_tiles = matrix_unit() != MatrixUnit::kNone;
  DANET_CHECK(
      type == ScalarType::Float || (type == ScalarType::BFloat16 && has_tiles), op,
      ": dtype must be float32, or bfloat16 if the processor has AMX or AVX512_BF16");
  return type == ScalarType::Float ? DANET_KERNELS(safem_kernels, DType::kFloat)
                                   : DANET_TILE_KERNELS(safem_tile_kernels);
}

// Packs the weights (see safem.h) for images of their dtype.
Tensor prepare_safem(
    const Tensor& depthwise, const Tensor& depthwise_bias, const Tensor& predictor, const Tensor& predictor_bias,
    const Tensor& expand, const Tensor& expand_bias, const Tensor& reduce, const Tensor& reduce_bias, int64_t groups) {
  const char* op = "prepare_safem";
  const int64_t C = depthwise.size(0), predicted = 3 * kSafemTaps * groups;
  const SafemParams p{0, C, 1, 1, groups, 1};  // the layout does not depend on the size of the images
  check_sdc<std::runtime_error>(op, sdc_options(p), SdcLayout::kSdc);
  std::vector<Tensor> converted;  // keeps the float32 copies of weights in bfloat16
  const auto values = [&](const char* name, const Tensor& weight, int64_t count) {
    converted.push_back(torch::stable::to(weight, ScalarType::Float));
    return floats(op, name, converted.back(), count);
  };
  const SafemWeights weights{
      values("depthwise", depthwise, C * kSafemTaps),
      values("depthwise_bias", depthwise_bias, C),
      values("predictor", predictor, predicted * C),
      values("predictor_bias", predictor_bias, predicted),
      values("expand", expand, 2 * C * C),
      values("expand_bias", expand_bias, 2 * C),
      values("reduce", reduce, 2 * C * C),
      values("reduce_bias", reduce_bias, C)};
  const SafemKernels& kernels = kernels_of(op, depthwise.scalar_type());
  const Tensor prepared = torch::stable::empty({kernels.prepared_size(p)}, ScalarType::Float);
  kernels.prepare(p, weights, static_cast<float*>(prepared.mutable_data_ptr()));
  return prepared;
}

// The number of blocks into which the pixels of an image are divided. It does not depend on the number of threads, so
// that sums over blocks do not either.
int64_t count_blocks(const SafemParams& p, const SafemKernels& kernels) {
  constexpr int64_t kSmallBlock = 32;  // for images with few pixels; the rows of a block on the matrix unit
  const int64_t P = p.H * p.W, most = kernels.block_pixels(p), size = P < 8 * most ? kSmallBlock : most;
  const int64_t blocks = (P + size - 1) / size;
  return blocks > 1 && blocks % 2 == 1 ? blocks + 1 : blocks;  // even, for two threads
}

// Splits each image into blocks of pixels of about the same size. Calls body(block_index, n, begin, end, scratch) for
// every block: pixels [begin, end) of image n. Before the first call, sets `blocks` to the number of blocks per image.
template <typename Body>
void for_blocks(const SafemParams& p, const SafemKernels& kernels, int64_t& blocks, const Body& body) {
  const int64_t P = p.H * p.W;
  blocks = count_blocks(p, kernels);
  const int64_t largest = (P + blocks - 1) / blocks;
  parallel_items(p.N * blocks, [&](const auto& next) {
    Scratch scratch(kernels.scratch_size(p, largest));
    for (int64_t block_index; (block_index = next()) >= 0;) {
      const int64_t block = block_index % blocks;
      body(block_index, block_index / blocks, P * block / blocks, P * (block + 1) / blocks, scratch.get());
    }
  });
}

// A contiguous copy of a matrix in float32 or bfloat16 as float32, or the matrix itself.
Activation to_floats(const Activation& matrix, const ActivationMemory& memory) {
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  const bool is_float = matrix.scalar_type() == ScalarType::Float;
  if (is_float && matrix.stride(1) == 1 && matrix.stride(0) == columns) return matrix;
  const Activation copy = memory.temporary({rows, columns}, ScalarType::Float);
  float* to = static_cast<float*>(copy.mutable_data_ptr());
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t place = row * matrix.stride(0) + column * matrix.stride(1);
      *to++ = is_float ? static_cast<const float*>(matrix.const_data_ptr())[place]
                       : float(static_cast<const TorchBFloat16*>(matrix.const_data_ptr())[place]);
    }
  return copy;
}

// As compact_image.
ActivationImage compact_activation(const Activation& input, const SafemParams& p) {
  ActivationImage image(input);
  if (fits_32_bits(sdc_params(p), image.view.pixel_stride)) return image;
  return ActivationImage(compact_image(input.as_tensor(), sdc_params(p)).tensor);
}

// The image of pairs, if the kernels need one, and the exponents of its scales.
class Pairs {
 public:
  Pairs(const SafemParams& p, const SafemKernels& kernels, const ImageView& input, const ActivationMemory& memory)
      : values_(memory.temporary({kernels.pairs_size(p)}, ScalarType::Int)), exponents_(size_t(p.N)) {
    const int64_t size = values_.size(0);
    if (size == 0) return;
    // The kernels compute the places of samples in bytes as unsigned integers, and the numbers of pixels in float32.
    DANET_CHECK(
        size / p.N < int64_t(1) << 30 && (p.H + 4) * (p.W + 3) < int64_t(1) << 24,
        "safem: the image is too large in bfloat16: ", p.C, " x ", p.H, " x ", p.W);
    uint32_t* const to = static_cast<uint32_t*>(values_.mutable_data_ptr());
    std::vector<std::atomic<float>> largest(static_cast<size_t>(p.N));
    for (auto& each : largest) each.store(0, std::memory_order_relaxed);
    parallel_for(p.N * p.H, p.W * p.C, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end;) {
        const int64_t n = row / p.H, first = row % p.H, last = std::min(p.H, first + end - row);
        const float found = kernels.write_pair_image(p, input, n, first, last, 0, to);
        std::atomic<float>& known = largest[size_t(n)];
        for (float value = known.load(); value < found && !known.compare_exchange_weak(value, found);) continue;
        row += last - first;
      }
    });
    // If the values do not fit the range of float16, which is rare, write them again, divided by a power of two.
    for (int64_t n = 0; n < p.N; ++n) {
      const int exponent = exponents_[size_t(n)] = kernels.pair_exponent(p, input, n, largest[size_t(n)].load());
      if (exponent == 0) continue;
      parallel_for(p.H, p.W * p.C, [&](int64_t begin, int64_t end) {
        kernels.write_pair_image(p, input, n, begin, end, exponent, to);
      });
    }
  }

  PairsView view() const { return {static_cast<const uint32_t*>(values_.const_data_ptr()), exponents_.data()}; }

 private:
  Activation values_;
  std::vector<int> exponents_;
};

}  // namespace

Activation safem(
    const Activation& input, const Tensor& prepared, const std::optional<Activation>& up,
    const std::optional<Activation>& weight, int64_t groups, double scale, const ActivationMemory& memory) {
  const SafemParams p = check_safem("safem", input, groups, scale);
  const SafemKernels& kernels = kernels_of("safem", input.scalar_type());
  const float* weights = floats("safem", "prepared", prepared, kernels.prepared_size(p));
  check_levels(p, input, up, weight);
  std::optional<ActivationImage> deep;
  std::optional<Activation> own_weight;
  const float* own = nullptr;
  if (up) {
    own_weight = to_floats(*weight, memory);
    own = static_cast<const float*>(own_weight->const_data_ptr());
    deep.emplace(*up);
  }
  const ActivationImage x(compact_activation(input, p)), out(memory.result(input.sizes(), input.scalar_type()));
  const ImageView none{nullptr, 0, 0};
  int64_t blocks;
  if (p.N == 0) return out.tensor;
  const Pairs pairs(p, kernels, x.view, memory);
  for_blocks(p, kernels, blocks, [&](int64_t /* block_index */, int64_t n, int64_t begin, int64_t end, char* scratch) {
    kernels.forward(
        p, x.view, pairs.view(), weights, deep ? deep->view : none, own ? own + n * p.C : nullptr, out.view, n, begin,
        end, scratch);
  });
  return out.tensor;
}

namespace {

// Computes the means of z, mean [N, C].
void compute_means(
    const SafemParams& p, const SafemKernels& kernels, const Activation& input, const float* weights, float* mean,
    const ActivationMemory& memory) {
  const ActivationImage x(compact_activation(input, p));
  const Scratch sums(std::max<int64_t>(1, p.N * count_blocks(p, kernels) * p.C) * int64_t(sizeof(float)));
  float* sum = reinterpret_cast<float*>(sums.get());
  const Pairs pairs(p, kernels, x.view, memory);
  int64_t blocks = 0;
  for_blocks(p, kernels, blocks, [&](int64_t block_index, int64_t n, int64_t begin, int64_t end, char* scratch) {
    kernels.sum(p, x.view, pairs.view(), weights, sum + block_index * p.C, n, begin, end, scratch);
  });
  // Add up the blocks in their order, so that the result does not depend on the threads.
  for (int64_t n = 0; n < p.N; ++n)
    for (int64_t c = 0; c < p.C; ++c) {
      double total = 0;
      for (int64_t block = 0; block < blocks; ++block) total += sum[(n * blocks + block) * p.C + c];
      mean[n * p.C + c] = float(total / double(p.H * p.W));
    }
}

}  // namespace

Activation acfa_weight(
    const Activation& input, const Tensor& prepared, int64_t groups, const ActivationMemory& memory) {
  const SafemParams p = check_safem("acfa_weight", input, groups, 1);
  const SafemKernels& kernels = kernels_of("acfa_weight", input.scalar_type());
  const float* weights = floats("acfa_weight", "prepared", prepared, kernels.prepared_size(p));
  const Activation result = memory.result({p.N, p.C}, input.scalar_type());
  // The kernels compute in float32, in place.
  const bool is_converted = input.scalar_type() != ScalarType::Float;
  const Activation float32 = is_converted ? memory.temporary({p.N, p.C}, ScalarType::Float) : result;
  float* const values = static_cast<float*>(float32.mutable_data_ptr());
  compute_means(p, kernels, input, weights, values, memory);
  Scratch scratch(kernels.scratch_size(p, 1));
  for (int64_t n = 0; n < p.N; ++n)
    kernels.channel_weight(p, values + n * p.C, weights, values + n * p.C, scratch.get());
  if (is_converted) std::copy_n(values, p.N * p.C, static_cast<TorchBFloat16*>(result.mutable_data_ptr()));
  return result;
}

namespace {

Tensor safem_of_tensors(
    const Tensor& input, const Tensor& prepared, const std::optional<Tensor>& up, const std::optional<Tensor>& weight,
    int64_t groups, double scale) {
  const auto activation = [](const std::optional<Tensor>& t) {
    return t ? std::optional<Activation>(*t) : std::nullopt;
  };
  return safem(input, prepared, activation(up), activation(weight), groups, scale, ActivationMemory{}).to_tensor();
}

Tensor acfa_weight_of_tensors(const Tensor& input, const Tensor& prepared, int64_t groups) {
  return acfa_weight(input, prepared, groups, ActivationMemory{}).to_tensor();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(danet, CPU, library) {
  library.impl("prepare_safem", TORCH_BOX(&prepare_safem));
  library.impl("safem", TORCH_BOX(&safem_of_tensors));
  library.impl("acfa_weight", TORCH_BOX(&acfa_weight_of_tensors));
}

}  // namespace danet
