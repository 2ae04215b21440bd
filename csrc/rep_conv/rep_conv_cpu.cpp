// The torch operators rep_conv and prepare_rep_conv on the CPU: choice of the algorithm, memory and threads.
#include <numeric>
#include <optional>
#include <vector>

#include "../common/threads.h"
#include "../program/program.h"
#include "rep_conv_check.h"
#include "rep_conv_library.h"

namespace danet {
namespace {

enum class RepConvMethod { kTiles, kWinograd, kFewOutputs, kFewInputs, kTorch };

// The dtypes of the input and of the weight. Either they are the same, or the input has 16 bits and the weight is
// float32.
struct RepConvTypes {
  ScalarType input, weight;
};

// Whether a 3x3 layer in bfloat16 is computed as in float32, and only reads and writes bfloat16, although the processor
// has AVX512_BF16. VDPBF16PS does at most twice as many multiplications per cycle as float32. Winograd's algorithm
// needs a quarter of them at stride 1, and a little more than half at stride 2. Moreover, a TileBlock has 32 depths and
// 32 columns, of which layers with few channels use a part, and a float32 weight takes two columns.
constexpr int64_t kTileChannels = 32;  // kTileDepth and kBlockColumns in amx.h
bool is_float32_faster(RepConvTypes types, const RepConvParams& p) {
  if (matrix_unit() != MatrixUnit::kAvx512Bf16 || p.kernel_size == 1) return false;
  return types.weight == ScalarType::Float || p.stride == 1 || p.C < kTileChannels || p.C_out < kTileChannels;
}

// Chooses the algorithm. The kernels for a matrix unit, or for AVX512_BF16, compute bfloat16 layers with at least
// kFewChannels input and output channels, unless float32 is faster; layers with fewer channels are computed as in
// float32. Under the same conditions, they compute layers at stride 1 with a float32 weight for an input in bfloat16.
// Of the rest, torch's convolution (oneDNN) computes float64, 1x1 kernels, bfloat16 if only oneDNN has kernels for it,
// and layers with few output channels at stride 2. Winograd computes layers with enough channels to amortize its
// transforms.
RepConvMethod choose_method(RepConvTypes types, const RepConvParams& p) {
  const bool has_tiles =
      types.input == ScalarType::BFloat16 && matrix_unit() != MatrixUnit::kNone && !is_float32_faster(types, p);
  if (has_tiles && types.weight == ScalarType::Float && p.stride == 1) return RepConvMethod::kTiles;
  if (has_tiles && types.weight == types.input && p.C >= kFewChannels && p.C_out >= kFewChannels)
    return RepConvMethod::kTiles;
  if (types.weight == ScalarType::Double || p.kernel_size == 1) return RepConvMethod::kTorch;
  if (types.weight == ScalarType::BFloat16 && matrix_unit() == MatrixUnit::kNone && has_avx512_bf16())
    return RepConvMethod::kTorch;
  if (p.C < kFewChannels) return RepConvMethod::kFewInputs;
  if (p.C_out < kFewChannels && p.stride != 1) return RepConvMethod::kTorch;
  if (p.C_out < kFewChannels) return p.C <= kFewOutputsMaxChannels ? RepConvMethod::kFewOutputs : RepConvMethod::kTorch;
  return RepConvMethod::kWinograd;
}

// As check_rep_conv, with the decision about a float32 weight.
RepConvParams with_float32_weight(RepConvParams p, RepConvTypes types, RepConvMethod method) {
  p.has_float32_weight = method == RepConvMethod::kTiles && types.weight != types.input;
  return p;
}

// torch's convolution. Half types are converted to float32 if the processor has no instructions for them. NOTE: on
// processors with AMX, torch 2.13 returns wrong values in bfloat16 at stride 2 if the result is one pixel wide and five
// or more pixels high. Therefore inputs at most two pixels wide are converted at stride 2, too.
Tensor convolve_with_torch(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride, bool relu) {
  const ScalarType type = input.scalar_type();
  const bool is_wrong_in_bfloat16 = stride == 2 && input.size(3) <= 2;
  const bool is_converted =
      type == ScalarType::Half || (type == ScalarType::BFloat16 && (!has_avx512_bf16() || is_wrong_in_bfloat16));
  auto to_float32 = [&](const Tensor& t) { return is_converted ? torch::stable::to(t, ScalarType::Float) : t; };
  std::optional<Tensor> float32_bias;
  if (bias) float32_bias = to_float32(*bias);
  const Tensor out = call_torch_convolution(
      torch::stable::contiguous(to_float32(input), MemoryFormat::ChannelsLast),
      torch::stable::contiguous(to_float32(weight), MemoryFormat::ChannelsLast), float32_bias, stride, relu);
  return torch::stable::contiguous(is_converted ? torch::stable::to(out, type) : out, MemoryFormat::ChannelsLast);
}

// The sizes of the prepared weight (layouts: rep_conv.h). Never four-dimensional:
// Module.to(memory_format=channels_last) would reorder such a tensor.
std::vector<int64_t> prepared_sizes(const RepConvKernels& kernels, const RepConvParams& p, RepConvMethod method) {
  const int64_t panels = (p.C_out + kernels.panel - 1) / kernels.panel;
  switch (method) {
    // One dimension more for a float32 weight, so that the layouts cannot be confused.
    case RepConvMethod::kTiles: {
      const int64_t size = DANET_TILE_KERNELS(rep_conv_tile_kernels).prepared_size(p);
      return p.has_float32_weight ? std::vector<int64_t>{1, size} : std::vector<int64_t>{size};
    }
    case RepConvMethod::kWinograd: return {panels, 9, p.C * kernels.panel};
    case RepConvMethod::kFewOutputs: return {p.C_out, 9, p.C};
    case RepConvMethod::kFewInputs: return {panels, 9, p.C * kernels.panel};
    default: return {0};
  }
}

ScalarType prepared_type(RepConvMethod method) {
  return method == RepConvMethod::kTiles ? ScalarType::BFloat16 : ScalarType::Float;
}

// Lays the weight out as rep_conv reads it for this dtype and stride on this processor. Returns an empty tensor if
// rep_conv reads the weight itself.
Tensor prepare_rep_conv(const Tensor& weight, int64_t stride, std::optional<ScalarType> input_dtype) {
  DANET_CHECK(
      weight.is_cpu() && weight.dim() == 4 && weight.size(2) == weight.size(3) &&
          (weight.size(2) == 1 || weight.size(2) == 3),
      "rep_conv: weight must be [C_out, C, 3, 3] or [C_out, C, 1, 1] on the CPU");
  const RepConvTypes types{input_dtype ? *input_dtype : weight.scalar_type(), weight.scalar_type()};
  RepConvParams p{0, weight.size(1), weight.size(0), 0, 0, false, stride, weight.size(2), false};
  const RepConvKernels& kernels = DANET_KERNELS(rep_conv_kernels, dtype_of(weight));
  const RepConvMethod method = choose_method(types, p);
  p = with_float32_weight(p, types, method);
  const Tensor prepared = torch::stable::empty(prepared_sizes(kernels, p, method), prepared_type(method));
  if (method == RepConvMethod::kTorch) return prepared;
  if (method == RepConvMethod::kTiles) {
    const Tensor dense = torch::stable::contiguous(weight);
    DANET_TILE_KERNELS(rep_conv_tile_kernels)
        .prepare(p, dense.const_data_ptr(), static_cast<BFloat16*>(prepared.mutable_data_ptr()));
    return prepared;
  }
  float* to = static_cast<float*>(prepared.mutable_data_ptr());
  const Tensor float32_weight = torch::stable::contiguous(torch::stable::to(weight, ScalarType::Float));
  const float* w = static_cast<const float*>(float32_weight.const_data_ptr());
  const auto value = [&](int64_t o, int64_t k, int64_t c) { return o < p.C_out ? w[(o * p.C + c) * 9 + k] : 0; };
  const int64_t lanes = method == RepConvMethod::kFewOutputs ? 1 : kernels.panel;
  for (int64_t o = 0; o < (p.C_out + lanes - 1) / lanes * lanes; ++o)
    for (int64_t k = 0; k < 9; ++k)
      for (int64_t c = 0; c < p.C; ++c) to[((o / lanes * 9 + k) * p.C + c) * lanes + o % lanes] = value(o, k, c);
  return prepared;
}

// The convolution on the matrix unit. Blocks of output rows are divided over the threads, and panels of output channels
// too if an image has few pixels.
void convolve_with_tiles(
    const RepConvParams& p, const TileImage& input, const Tensor& prepared, const void* bias, const TileImage& out) {
  const RepConvTileKernels& kernels = DANET_TILE_KERNELS(rep_conv_tile_kernels);
  const BFloat16* weights = static_cast<const BFloat16*>(prepared.const_data_ptr());
  const int64_t H = p.H_out(), threads = available_threads(), panels = kernels.panels(p);
  if (p.N == 0 || H == 0 || p.W_out() == 0) return;
  // A thread's copy of the input should leave most of an L2 cache of 2 MiB for the input, the result and the weights.
  const int64_t block_bytes = kernels.reads_directly(p, input) ? 1 << 20 : 3 << 17;
  const int64_t rows_per_block = std::max<int64_t>(1, H * block_bytes / kernels.scratch_size(p, H));
  int64_t blocks = (H + rows_per_block - 1) / rows_per_block, parts = 1;
  // NOTE: threads that divide the panels read the whole input, which other threads have written. That takes longer than
  // reading all weights, except for very small images.
  constexpr int64_t kFewPixels = 160;
  if (p.N * blocks < 4 * threads) {
    if (H * p.W_out() < kFewPixels)
      parts = std::min(panels, threads / std::gcd(p.N * blocks, threads));
    else
      blocks = std::min(H, (blocks + threads - 1) / threads * threads);
  }
  const int64_t largest = (H + blocks - 1) / blocks;
  parallel_items(p.N * blocks * parts, [&](const auto& next) {
    Scratch scratch(kernels.scratch_size(p, largest));
    for (int64_t work_index; (work_index = next()) >= 0;) {
      const int64_t part = work_index % parts, block = work_index / parts % blocks, n = work_index / parts / blocks;
      kernels.forward(
          p, input, weights, bias, out, n, H * block / blocks, H * (block + 1) / blocks, panels * part / parts,
          panels * (part + 1) / parts, scratch.get());
    }
  });
}

// Memory for an image [N, C, H, W], channels-last, with a border of zeros as TileImage describes it.
Activation empty_with_border(const ActivationMemory& memory, int64_t N, int64_t C, int64_t H, int64_t W) {
  // At the end of the image there are a row for the border, and rows that a block may read without using the values.
  const int64_t pitch = W + 1, rows = H + 2 + (kTileOverrun + pitch) / pitch;
  Activation image = memory.result({N, C, rows, pitch}, ScalarType::BFloat16);
  const size_t pixel_size = size_t(C) * sizeof(BFloat16);
  for (int64_t n = 0; n < N; ++n) {
    char* const begin = static_cast<char*>(image.mutable_data_ptr()) + size_t(n * rows * pitch) * pixel_size;
    const auto clear = [&](int64_t first, int64_t count) {
      std::memset(begin + size_t(first) * pixel_size, 0, size_t(count) * pixel_size);
    };
    // Clear the row above the image, the pixel to the left of each row, and the row below with the pixel after it.
    clear(0, pitch);
    for (int64_t y = 1; y <= H; ++y) clear(y * pitch, 1);
    clear((H + 1) * pitch, pitch + 1);
  }
  image.remove_border(H, W);
  return image;
}

// The result of `convolve` on the matrix unit, without conversion.
Activation convolve_on_matrix_unit(
    const RepConvParams& p, const Activation& x, const Tensor& prepared, const void* bias, ScalarType type,
    bool wants_border, const ActivationMemory& memory) {
  // An input without a border may have to be copied: its strides may be those of any tensor.
  std::optional<ActivationImage> dense;
  if (!x.has_border) dense.emplace(x);
  const TileImage input =
      dense ? TileImage{dense->view, p.W, false}
            : TileImage{{const_cast<void*>(x.const_data_ptr()), x.stride(0), x.stride(3)}, p.W + 1, true};
  // Only images in bfloat16 are read on the matrix unit. With AVX512_BF16, Winograd reads most of them.
  const bool has_border =
      wants_border && !memory.is_output && type == ScalarType::BFloat16 && matrix_unit() != MatrixUnit::kAvx512Bf16;
  const int64_t H = p.H_out(), W = p.W_out();
  const Activation out =
      has_border ? empty_with_border(memory, p.N, p.C_out, H, W) : memory.result({p.N, p.C_out, H, W}, type);
  const ImageView view{out.mutable_data_ptr(), out.stride(0), p.C_out};
  convolve_with_tiles(p, input, prepared, bias, TileImage{view, has_border ? W + 1 : W, has_border});
  return out;
}

// The convolution for few input channels, from float32 to bfloat16. Blocks of output rows are divided over the threads.
void convolve_few_inputs(
    const RepConvParams& p, ImageView input, const float* weights, int64_t panel, const void* bias, ImageView out) {
  const RepConvTileKernels& kernels = DANET_TILE_KERNELS(rep_conv_tile_kernels);
  constexpr int64_t kBlocksPerThread = 8, kBlockWork = 16 * kWorkPerThread;
  const int64_t rows = p.N * p.H_out(), work = rows * p.W_out() * p.C * p.C_out;
  const int64_t blocks = std::min({rows, kBlocksPerThread * available_threads(), 1 + work / kBlockWork});
  parallel_items(blocks, [&](const auto& next) {
    const Scratch scratch(kernels.few_inputs_scratch(p));
    bool is_first = true;
    for (int64_t block; (block = next()) >= 0; is_first = false)
      kernels.few_inputs(
          p, input, weights, panel, bias, out, rows * block / blocks, rows * (block + 1) / blocks, scratch.get(),
          is_first);
  });
}

// An input, the result of convolve_with_torch or of a kernel, in the dtype that is needed.
Activation converted(const Activation& x, ScalarType type) {
  return x.scalar_type() == type ? x : to_channels_last(torch::stable::to(x.as_tensor(), type));
}

}  // namespace

Activation convolve(
    const Activation& given, const Tensor& weight, const std::optional<Tensor>& prepared,
    const std::optional<Tensor>& bias, int64_t stride, bool relu, std::optional<ScalarType> out_dtype,
    bool wants_border, const Tensor* next_weight, const ActivationMemory& memory) {
  RepConvParams p = check_rep_conv(given, weight, bias, stride, relu, /*allows_float32_weight=*/true);
  const ScalarType type = weight.scalar_type(), out_type = out_dtype ? *out_dtype : type;
  const RepConvTypes types{given.scalar_type(), type};
  const RepConvMethod method = choose_method(types, p);
  p = with_float32_weight(p, types, method);
  if (next_weight != nullptr) {
    p.next_weight = next_weight->const_data_ptr();
    p.next_bytes = next_weight->numel() * next_weight->element_size();
  }
  // Only the matrix unit reads an input whose dtype differs from the weight's.
  const Activation input = method == RepConvMethod::kTiles ? given : converted(given, type);
  // NOTE: a weight that is not prepared must be laid out in every call. At stride 2 that costs more than Winograd
  // saves.
  const bool is_unprepared = !prepared && stride == 2 && method == RepConvMethod::kWinograd;
  if (is_unprepared || method == RepConvMethod::kTorch)
    return converted(convolve_with_torch(input.as_tensor(), weight, bias, stride, relu), out_type);

  const RepConvKernels& kernels = DANET_KERNELS(rep_conv_kernels, dtype_of(input));
  const Tensor packed = prepared ? *prepared : prepare_rep_conv(weight, stride, given.scalar_type());
  const std::vector<int64_t> expected = prepared_sizes(kernels, p, method);
  DANET_CHECK(
      packed.is_cpu() && packed.is_contiguous() && packed.scalar_type() == prepared_type(method) &&
          packed.dim() == int64_t(expected.size()) &&
          std::equal(expected.begin(), expected.end(), packed.sizes().begin()),
      "rep_conv: prepared does not match the weight, the stride and the dtype of the input");
  // Where there is a matrix unit or AVX512_BF16, one kernel reads float32 and writes bfloat16.
  const bool writes_bfloat16 = method == RepConvMethod::kFewInputs && type == ScalarType::Float &&
                               out_type == ScalarType::BFloat16 && matrix_unit() != MatrixUnit::kNone;
  std::optional<Tensor> contiguous_bias;
  if (bias) contiguous_bias = bias->is_contiguous() ? *bias : torch::stable::contiguous(*bias);
  const void* b = contiguous_bias ? contiguous_bias->const_data_ptr() : nullptr;
  if (method == RepConvMethod::kTiles) {
    const bool has_border = wants_border && out_type == type;
    return converted(convolve_on_matrix_unit(p, given, packed, b, type, has_border, memory), out_type);
  }
  const ActivationImage x(input);
  const ActivationImage out(memory.result({p.N, p.C_out, p.H_out(), p.W_out()}, writes_bfloat16 ? out_type : type));
  const float* weights = static_cast<const float*>(packed.const_data_ptr());
  if (method == RepConvMethod::kFewOutputs) {
    parallel_for(p.N * p.H, p.W * p.C * p.C_out, [&](int64_t begin, int64_t end) {
      kernels.few_outputs(p, x.view, weights, b, out.view, begin, end);
    });
    return converted(out.tensor, out_type);
  }
  if (method == RepConvMethod::kFewInputs && writes_bfloat16) {
    convolve_few_inputs(p, x.view, weights, kernels.panel, b, out.view);
    return out.tensor;
  }
  if (method == RepConvMethod::kFewInputs) {
    parallel_for(p.N * p.H_out(), p.W_out() * p.C * p.C_out, [&](int64_t begin, int64_t end) {
      const Scratch scratch(kernels.few_inputs_scratch(p) * int64_t(sizeof(float)));
      kernels.few_inputs(p, x.view, weights, b, out.view, begin, end, reinterpret_cast<float*>(scratch.get()));
    });
    return converted(out.tensor, out_type);
  }

  // Divide the tiles into blocks of nearly equal size. If there are few blocks, balance them over the threads: split
  // the panels of output channels if transforming the weights dominates (each block repeats that work), else use more,
  // smaller blocks.
  const WinogradKernels& winograd = kernels.winograd[stride - 1];
  const int64_t tiles = p.N * ((p.H_out() + 3) / 4) * ((p.W_out() + 3) / 4);
  const int64_t threads = torch::stable::get_num_threads();
  if (tiles == 0) return converted(out.tensor, out_type);
  const int64_t panels = expected[0];
  int64_t blocks = (tiles + winograd.tiles_per_block(p) - 1) / winograd.tiles_per_block(p), parts = 1;
  if (blocks < 4 * threads) {
    if (panels * 10 > tiles)
      parts = std::min(panels, threads / std::gcd(blocks, threads));
    else
      blocks = std::min(tiles, (blocks + threads - 1) / threads * threads);
  }
  const int64_t largest = (tiles + blocks - 1) / blocks;
  parallel_for(blocks * parts, kWorkPerThread, [&](int64_t begin, int64_t end) {
    Scratch scratch(winograd.scratch_size(p, largest));
    for (int64_t work_index = begin; work_index < end; ++work_index) {
      int64_t block = work_index / parts, part = work_index % parts;
      winograd.forward(
          p, x.view, weights, b, out.view, tiles * block / blocks, tiles * (block + 1) / blocks, panels * part / parts,
          panels * (part + 1) / parts, scratch.get());
    }
  });
  return converted(out.tensor, out_type);
}

Tensor rep_conv(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& prepared, const std::optional<Tensor>& bias,
    int64_t stride, bool relu, bool /* tf32 */, std::optional<ScalarType> out_dtype) {
  return convolve(
             input, weight, prepared, bias, stride, relu, out_dtype, /*wants_border=*/false, /*next_weight=*/nullptr,
             ActivationMemory{})
      .to_tensor();
}

STABLE_TORCH_LIBRARY_IMPL(danet, CPU, library) {
  library.impl("rep_conv", TORCH_BOX(&rep_conv));
  library.impl("prepare_rep_conv", TORCH_BOX(&prepare_rep_conv));
}

}  // namespace danet
