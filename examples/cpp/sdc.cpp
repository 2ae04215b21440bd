// Runs SDC forward and backward with danet_cpp, and compares the results with loops over the formula. Prints the
// largest differences; the exit code is 1 if one of them exceeds the rounding error.
#include <danet/sdc.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <stdexcept>
#include <vector>

using Floats = std::vector<float>;

Floats random_floats(int64_t count, float scale) {
  static std::mt19937 generator(0);
  std::normal_distribution<float> normal(0, scale);
  Floats values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

// A term of the formula in include/danet/sdc.h: weights[tap] * corner * input[in] is added to out[out]. `corner` is the
// bilinear weight of one of the four pixels around (Y, X); by_y and by_x are its derivatives.
struct Term {
  int64_t out, in, tap;
  double corner, by_y, by_x;
};

void for_each_term(const danet::SdcOptions& o, const Floats& offset, const std::function<void(Term)>& visit) {
  const danet::SdcSizes s = danet::sdc_sizes(o);
  for (int64_t n = 0; n < o.N; ++n)
    for (int64_t y = 0; y < s.H_out; ++y)
      for (int64_t x = 0; x < s.W_out; ++x)
        for (int64_t g = 0; g < o.groups; ++g)
          for (int64_t k = 0; k < s.K; ++k) {
            const int64_t pixel = (n * s.H_out + y) * s.W_out + x, m = (pixel * o.groups + g) * s.K + k;
            const int64_t output[2] = {y, x}, tap[2] = {k / o.kernel_size[1], k % o.kernel_size[1]};
            double at[2];
            for (int axis = 0; axis < 2; ++axis) {
              const int64_t d = o.dilation[axis], h = d * (o.kernel_size[axis] - 1) / 2;
              at[axis] = double(output[axis] * o.stride[axis] - o.padding[axis] + h) +
                         o.offset_scale * (double(tap[axis] * d - h) + offset[2 * m + axis]);
            }
            for (int corner = 0; corner < 4; ++corner) {
              const double Y = std::floor(at[0]) + corner / 2, X = std::floor(at[1]) + corner % 2;
              if (Y < 0 || X < 0 || Y >= o.H || X >= o.W) continue;
              const double height = 1 - std::abs(at[0] - Y), width = 1 - std::abs(at[1] - X);
              const double by_y = corner / 2 ? width : -width, by_x = corner % 2 ? height : -height;
              const int64_t C = o.C / o.groups, in = ((n * o.H + int64_t(Y)) * o.W + int64_t(X)) * o.C;
              for (int64_t c = g * C; c < (g + 1) * C; ++c)
                visit({pixel * o.C + c, in + c, m, height * width, by_y, by_x});
            }
          }
}

// The softmax of each group of K logits.
Floats softmax(const Floats& mask, int64_t K) {
  Floats weights(mask.size());
  for (size_t first = 0; first < mask.size(); first += K) {
    double sum = 0;
    for (int64_t k = 0; k < K; ++k) sum += std::exp(double(mask[first + k]));
    for (int64_t k = 0; k < K; ++k) weights[first + k] = float(std::exp(double(mask[first + k])) / sum);
  }
  return weights;
}

bool close(const char* name, const Floats& found, const Floats& expected) {
  double worst = 0;
  for (size_t i = 0; i < found.size(); ++i)
    worst = std::max(worst, std::abs(double(found[i]) - expected[i]) / (1 + std::abs(double(expected[i]))));
  std::printf("%-12s largest difference %.1e\n", name, worst);
  return worst < 1e-5;  // also false for NaN
}

int main() try {
  danet::SdcOptions o;
  o.N = 2, o.C = 24, o.H = 13, o.W = 17, o.groups = 3;
  o.stride[0] = 2, o.dilation[1] = 2, o.padding[1] = 2;
  const danet::SdcSizes s = danet::sdc_sizes(o);
  const int64_t taps = o.N * s.H_out * s.W_out * o.groups * s.K, outs = o.N * s.H_out * s.W_out * o.C;
  const Floats input = random_floats(o.N * o.H * o.W * o.C, 1), grad_out = random_floats(outs, 1);
  const Floats offset = random_floats(2 * taps, 2), mask = random_floats(taps, 1);

  Floats out(outs), grad_input(input.size()), grad_offset(offset.size()), grad_mask(mask.size());
  danet::sdc_forward(o, input.data(), offset.data(), mask.data(), out.data(), 2);
  danet::sdc_backward(
      o, grad_out.data(), input.data(), offset.data(), mask.data(), grad_input.data(), grad_offset.data(),
      grad_mask.data(), 2);

  const Floats weights = softmax(mask, s.K);
  Floats sums(outs), grad_sums(input.size()), grad_offsets(2 * taps), grad_weights(taps), grad_logits(taps);
  for_each_term(o, offset, [&](Term t) {
    const double weight = weights[t.tap], product = double(input[t.in]) * grad_out[t.out];
    sums[t.out] += float(weight * t.corner * input[t.in]);
    grad_sums[t.in] += float(weight * t.corner * grad_out[t.out]);
    grad_offsets[2 * t.tap] += float(o.offset_scale * weight * t.by_y * product);
    grad_offsets[2 * t.tap + 1] += float(o.offset_scale * weight * t.by_x * product);
    grad_weights[t.tap] += float(t.corner * product);
  });
  for (int64_t first = 0; first < taps; first += s.K) {
    double mean = 0;
    for (int64_t m = first; m < first + s.K; ++m) mean += double(weights[m]) * grad_weights[m];
    for (int64_t m = first; m < first + s.K; ++m) grad_logits[m] = float(weights[m] * (grad_weights[m] - mean));
  }
  bool good = close("out", out, sums);
  good &= close("grad_input", grad_input, grad_sums);
  good &= close("grad_offset", grad_offset, grad_offsets);
  good &= close("grad_mask", grad_mask, grad_logits);
  return good ? 0 : 1;
} catch (const std::invalid_argument& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
