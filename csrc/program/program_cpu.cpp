// The torch operator run_program (program.h).
#include <vector>

#include "../common/threads.h"
#include "program.h"

namespace danet {
namespace {

// Reads the integers of a program in their order, and looks up what they stand for. Throws if one of them is out of
// range: the operator must be safe for direct callers.
class Reader {
 public:
  Reader(
      const std::vector<int64_t>& code, const std::vector<Tensor>& tensors, const std::vector<double>& numbers,
      std::vector<std::optional<Activation>>& values)
      : code_(code), tensors_(tensors), numbers_(numbers), values_(values) {}

  bool has_more() const { return position_ < code_.size(); }
  int64_t integer() {
    DANET_CHECK(has_more(), "run_program: the program ends within an instruction");
    return code_[position_++];
  }
  std::optional<Tensor> optional_tensor() {
    const int64_t i = integer();
    return i == kNone ? std::nullopt : std::optional<Tensor>(tensors_[checked(i, tensors_.size())]);
  }
  const Tensor& tensor() { return tensors_[checked(integer(), tensors_.size())]; }
  size_t value_index() { return checked(integer(), values_.size()); }
  const Activation& activation() {
    const std::optional<Activation>& value_read = values_[value_index()];
    DANET_CHECK(value_read.has_value(), "run_program: an instruction reads a value that does not exist");
    return *value_read;
  }
  std::optional<Activation> optional_activation() {
    if (has_more() && code_[position_] == kNone) return ++position_, std::nullopt;
    return activation();
  }
  double number() { return numbers_[checked(integer(), numbers_.size())]; }
  std::optional<ScalarType> dtype() {
    const int64_t i = integer();
    return i == kNone ? std::nullopt : std::optional<ScalarType>(kDTypes[checked(i, std::size(kDTypes))]);
  }

 private:
  static size_t checked(int64_t index, size_t size) {
    DANET_CHECK(index >= 0 && size_t(index) < size, "run_program: the index ", index, " is out of range");
    return size_t(index);
  }

  const std::vector<int64_t>& code_;
  const std::vector<Tensor>& tensors_;
  const std::vector<double>& numbers_;
  std::vector<std::optional<Activation>>& values_;
  size_t position_ = 0;
};

// Runs the next instruction.
void run_instruction(
    Reader& read, std::vector<std::optional<Activation>>& values, const std::vector<bool>& is_output, Arena& arena) {
  const int64_t instruction = read.integer();
  const size_t out_index = read.value_index();
  std::optional<Activation>& out = values[out_index];
  const ActivationMemory memory{&arena, is_output[out_index]};
  // NOTE: the arguments are read into variables, because the order of evaluation in a call is not defined.
  switch (instruction) {
    case kConvolve: {
      const Activation& input = read.activation();
      const Tensor& weight = read.tensor();
      const std::optional<Tensor> prepared = read.optional_tensor(), bias = read.optional_tensor();
      const int64_t stride = read.integer(), relu = read.integer();
      const std::optional<ScalarType> dtype = read.dtype();
      const bool wants_border = read.integer() != 0;
      const std::optional<Tensor> next = read.optional_tensor();
      out = convolve(
          input, weight, prepared, bias, stride, relu != 0, dtype, wants_border, next ? &*next : nullptr, memory);
      return;
    }
    case kNarrow: {
      const Activation& input = read.activation();
      const int64_t first = read.integer(), count = read.integer();
      out = input.channels(first, count);
      return;
    }
    case kSafem: {
      const Activation& input = read.activation();
      const Tensor& prepared = read.tensor();
      const std::optional<Activation> up = read.optional_activation(), weight = read.optional_activation();
      const int64_t groups = read.integer();
      out = safem(input, prepared, up, weight, groups, read.number(), memory);
      return;
    }
    case kAcfaWeight: {
      const Activation& input = read.activation();
      const Tensor& prepared = read.tensor();
      out = acfa_weight(input, prepared, read.integer(), memory);
      return;
    }
    case kFree: out.reset(); return;
    default: DANET_CHECK(false, "run_program: ", instruction, " is not an instruction");
  }
}

std::vector<Tensor> run_program(
    const Tensor& image, std::vector<Tensor> tensors, std::vector<int64_t> code, std::vector<double> numbers,
    int64_t num_values, std::vector<int64_t> outputs, bool uses_torch) {
  DANET_CHECK(num_values >= 1 && num_values <= 1 << 20, "run_program: num_values must be from 1 to 2^20");
  const BorrowedArena arena;  // is destroyed after the values
  std::vector<std::optional<Activation>> values(static_cast<size_t>(num_values));
  values[0] = Activation(image);
  // The results of these instructions are allocated as tensors, so that they need not be copied at the end.
  std::vector<bool> is_output(values.size());
  for (Reader reader(outputs, tensors, numbers, values); reader.has_more();) is_output[reader.value_index()] = true;
  const auto run = [&] {
    for (Reader reader(code, tensors, numbers, values); reader.has_more();)
      run_instruction(reader, values, is_output, arena.get());
  };
  // Operators of torch in a program would use one thread of a team only.
  uses_torch ? run() : ThreadTeam::run(run);
  std::vector<Tensor> results;
  for (Reader reader(outputs, tensors, numbers, values); reader.has_more();)
    results.push_back(reader.activation().to_tensor());
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(danet, CPU, library) { library.impl("run_program", TORCH_BOX(&run_program)); }

}  // namespace danet
