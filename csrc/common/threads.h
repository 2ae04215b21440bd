// What the torch side of every CPU operator shares besides: memory of a thread, and threads.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#include "tensor.h"

namespace danet {

// Memory of one thread, aligned to a cache line, until the end of the scope. A thread keeps one for its next calls, which
// find it in the cache; cut out of the heap again and again, between results that stay, it would leave holes there.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    Kept& kept = of_thread();
    if (bytes > kMostKept || kept.used) {
      own_ = allocate(bytes);
      memory_ = own_.get();
      return;
    }
    if (bytes > kept.size) {
      kept.memory.reset();
      kept.size = 0;
      kept.memory = allocate(bytes);
      kept.size = bytes;
    }
    memory_ = kept.memory.get();
    kept.used = true;
  }
  ~Scratch() {
    if (own_ == nullptr) of_thread().used = false;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* get() const { return memory_; }

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  using Memory = std::unique_ptr<char[], Free>;
  struct Kept {
    Memory memory;
    int64_t size = 0;
    bool used = false;
  };
  static constexpr int64_t kMostKept = 8 << 20;

  static Memory allocate(int64_t bytes) {
    Memory memory(static_cast<char*>(std::aligned_alloc(64, size_t((bytes + 127) / 64 * 64))));
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }
  static Kept& of_thread() {
    thread_local Kept kept;
    return kept;
  }

  Memory own_;  // where the thread's is in use, or too small for so much
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
