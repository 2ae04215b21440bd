// A program: the calls of a whole network for inference on the CPU, which run_program makes without returning to Python
// in between. A call from Python costs 10 to 15 microseconds, and a small network has about sixty.
//
// A program is a list of integers. It computes with numbered values: value 0 is the image, and each instruction writes
// one value. Tensors that do not change, such as weights, are taken by their index from a list, and numbers from
// another one. danet/models/program.py writes programs. The instructions, with their arguments:
//
//   kConvolve    out, in, weight, prepared, bias, stride, relu, out_dtype, wants_border, next_weight    rep_conv
//   kNarrow      out, in, first channel, number of channels
//   kSafem       out, in, prepared, up, weight, groups, scale                safem; up and weight are values or kNone,
//                                                                            scale is an index of the list of numbers
//   kAcfaWeight  out, in, prepared, groups                                   acfa_weight
//   kFree        value                                                       the value is not needed any more
//
// weight, prepared and bias of kConvolve, and prepared of the others, are indices of the list of tensors; an absent one
// is kNone. out_dtype is an index of kDTypes or kNone.
#pragma once

#include <cstdint>
#include <optional>

#include "activation.h"

namespace danet {

enum Instruction : int64_t { kConvolve, kNarrow, kSafem, kAcfaWeight, kFree };
constexpr int64_t kNone = -1;
constexpr ScalarType kDTypes[] = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double};

// The operators that programs call, from csrc/rep_conv and csrc/safem; see their schemas in library.cpp. The torch
// operators of the same names call them with tensors, and without an arena.

// rep_conv. The result has a border if wants_border is set, the matrix unit computes it, it is bfloat16 without a
// conversion, and it is not an output. next_weight: the weight of the next instruction, which is loaded into the L2
// cache meanwhile; may be null.
Activation convolve(
    const Activation& input, const Tensor& weight, const std::optional<Tensor>& prepared,
    const std::optional<Tensor>& bias, int64_t stride, bool relu, std::optional<ScalarType> out_dtype,
    bool wants_border, const Tensor* next_weight, const ActivationMemory& memory);
Activation safem(
    const Activation& input, const Tensor& prepared, const std::optional<Activation>& up,
    const std::optional<Activation>& weight, int64_t groups, double scale, const ActivationMemory& memory);
Activation acfa_weight(const Activation& input, const Tensor& prepared, int64_t groups, const ActivationMemory& memory);

}  // namespace danet
