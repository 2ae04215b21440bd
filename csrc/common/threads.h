// What the torch side of every CPU operator shares besides: memory of a thread, and threads.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#include "tensor.h"

namespace danet {

// Memory of one thread, aligned to a cache line, given back at the end of the scope.
class Scratch {
 public:
  explicit Scratch(int64_t bytes)
      : memory_(static_cast<char*>(std::aligned_alloc(64, size_t((bytes + 127) / 64 * 64)))) {
    if (memory_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { std::free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* get() const { return memory_; }

 private:
  char* memory_;
};

// Least work worth a thread of its own, in elementary operations (a few microseconds).
constexpr int64_t kWorkPerThread = 20000;

// body(begin, end) for parts of [0, count) on torch's threads; cost: elementary operations of one item.
template <typename Body>
void parallel_for(int64_t count, int64_t cost, const Body& body) {
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, kWorkPerThread / std::max<int64_t>(cost, 1)), body);
}

}  // namespace danet
