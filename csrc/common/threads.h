// Per-thread scratch memory and parallel loops, which the CPU operators share.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#include "tensor.h"

namespace danet {

// Scratch memory of the calling thread, aligned to a cache line, until the end of the scope. A thread reuses one buffer
// (up to 8 MiB) across calls: it stays in the cache, and the heap does not fragment.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    Buffer& buffer = thread_buffer();
    if (bytes > kMaxReusedBytes || buffer.used) {
      own_ = allocate(bytes);
      memory_ = own_.get();
      return;
    }
    if (bytes > buffer.size) {
      buffer.memory.reset();
      buffer.size = 0;
      buffer.memory = allocate(bytes);
      buffer.size = bytes;
    }
    memory_ = buffer.memory.get();
    buffer.used = true;
  }
  ~Scratch() {
    if (own_ == nullptr) thread_buffer().used = false;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* get() const { return memory_; }

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  using Memory = std::unique_ptr<char[], Free>;
  struct Buffer {
    Memory memory;
    int64_t size = 0;
    bool used = false;
  };
  static constexpr int64_t kMaxReusedBytes = 8 << 20;

  static Memory allocate(int64_t bytes) {
    Memory memory(static_cast<char*>(std::aligned_alloc(64, size_t((bytes + 127) / 64 * 64))));
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }
  static Buffer& thread_buffer() {
    thread_local Buffer buffer;
    return buffer;
  }

  Memory own_;  // used if the thread's buffer is in use, or if the request exceeds kMaxReusedBytes
  char* memory_;
};

// Minimum work per thread, in elementary operations (a few microseconds).
constexpr int64_t kWorkPerThread = 20000;

// Calls body(begin, end) for disjoint ranges that cover [0, count), on torch's threads. cost: elementary operations per
// item.
template <typename Body>
void parallel_for(int64_t count, int64_t cost, const Body& body) {
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, kWorkPerThread / std::max<int64_t>(cost, 1)), body);
}

}  // namespace danet
