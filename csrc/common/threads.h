// Per-thread scratch memory and parallel loops, which the CPU operators share.
#pragma once

#include <array>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "tensor.h"
#include "thread_team.h"

namespace danet {

// Scratch memory of the calling thread, aligned to a cache line, until the end of the scope. A thread reuses two
// buffers (up to 16 MiB each) across calls: they stay in the cache, the system need not provide new pages, and the heap
// does not fragment.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    for (Buffer& buffer : thread_buffers()) {
      if (buffer.used || bytes > kMaxReusedBytes) continue;
      if (bytes > buffer.size) {
        buffer.memory.reset();
        buffer.size = 0;
        buffer.memory = allocate(bytes);
        buffer.size = bytes;
      }
      buffer.used = true;
      reused_ = &buffer;
      memory_ = buffer.memory.get();
      return;
    }
    own_ = allocate(bytes);
    memory_ = own_.get();
  }
  ~Scratch() {
    if (reused_ != nullptr) reused_->used = false;
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
  static constexpr int64_t kMaxReusedBytes = 16 << 20;

  static Memory allocate(int64_t bytes) {
    Memory memory(static_cast<char*>(std::aligned_alloc(64, size_t((bytes + 127) / 64 * 64))));
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }
  static std::array<Buffer, 2>& thread_buffers() {
    thread_local std::array<Buffer, 2> buffers;
    return buffers;
  }

  Buffer* reused_ = nullptr;
  Memory own_;  // used if both buffers are in use, or if the request exceeds kMaxReusedBytes
  char* memory_;
};

// Minimum work per thread, in elementary operations (a few microseconds).
constexpr int64_t kWorkPerThread = 20000;

// Calls body(begin, end) for disjoint ranges that cover [0, count), on torch's threads or the team
// (thread_team.h). cost: elementary operations per item.
template <typename Body>
void parallel_for(int64_t count, int64_t cost, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kWorkPerThread / std::max<int64_t>(cost, 1));
  ThreadTeam* const team = ThreadTeam::current();
  if (team == nullptr) return torch::stable::parallel_for(0, count, grain, body);
  const int64_t threads = std::min(team->threads(), (count + grain - 1) / grain);
  if (threads <= 1) {
    if (count > 0) body(0, count);
    return;
  }
  team->call(threads, [&](int64_t thread) { body(count * thread / threads, count * (thread + 1) / threads); });
}

// A range of work items that several threads take from: its owner from the front, the others from the back.
class SharedRange {
 public:
  void reset(int64_t first, int64_t last) { bounds_ = uint64_t(first) << 32 | uint64_t(last); }
  // Takes one item; -1 if none is left.
  int64_t take(bool from_front) {
    uint64_t bounds = bounds_.load(std::memory_order_relaxed);
    while (true) {
      const int64_t first = int64_t(bounds >> 32), last = int64_t(bounds & 0xffffffffu);
      if (first >= last) return -1;
      const uint64_t rest = from_front ? uint64_t(first + 1) << 32 | uint64_t(last) : bounds - 1;
      if (bounds_.compare_exchange_weak(bounds, rest, std::memory_order_relaxed)) return from_front ? first : last - 1;
    }
  }

 private:
  alignas(64) std::atomic<uint64_t> bounds_{0};  // first << 32 | last
};

// Calls run(next) on every thread of torch or of the team; next() returns items of [0, count), each of them once, and
// -1 at the end. Every thread begins with a range of its own, so that successive operators find their data in its
// cache, and then takes items from the ranges of the other threads: cores differ in speed when other programs run on
// them.
template <typename Run>
void parallel_items(int64_t count, const Run& run) {
  DANET_CHECK(count < int64_t(1) << 32, "too many blocks of work");  // a SharedRange has 32 bits for each bound
  constexpr int64_t kMaxThreads = 64;
  const int64_t threads = std::min<int64_t>({available_threads(), kMaxThreads, count});
  if (threads <= 1) {
    int64_t item = 0;
    run([&] { return item < count ? item++ : -1; });
    return;
  }
  SharedRange ranges[kMaxThreads];
  for (int64_t i = 0; i < threads; ++i) ranges[i].reset(count * i / threads, count * (i + 1) / threads);
  const auto work = [&](int64_t thread) {
    run([&]() -> int64_t {
      for (int64_t i = 0; i < threads; ++i) {
        const int64_t item = ranges[(thread + i) % threads].take(/*from_front=*/i == 0);
        if (item >= 0) return item;
      }
      return -1;
    });
  };
  if (ThreadTeam* const team = ThreadTeam::current()) return team->call(threads, work);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) work(thread);
  });
}

}  // namespace danet
