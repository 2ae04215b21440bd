// A team of threads that serves several parallel loops in succession. Starting a parallel loop of torch takes about ten
// microseconds; a network of small layers has a hundred of them per image. A team is started once, and then hands over
// a loop in less than a microsecond, because its threads wait actively.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <utility>

#include <torch/csrc/stable/ops.h>

namespace danet {

class ThreadTeam {
 public:
  // Calls body() on the calling thread, with a team of torch's threads for the parallel loops (threads.h) in it.
  template <typename Body>
  static void run(const Body& body) {
    const int64_t threads = torch::stable::get_num_threads();
    if (threads <= 1 || current() != nullptr) return body();
    ThreadTeam team;
    std::exception_ptr error;
    // NOTE: torch may run this loop with fewer threads, also with one. A loop of the team waits only for threads that
    // have reached serve(). An exception must not leave the loop: torch would replace its message.
    torch::stable::parallel_for(0, std::min(threads, kMaxThreads), 1, [&](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread) thread == 0 ? team.lead(body, error) : team.serve();
    });
    if (error != nullptr) std::rethrow_exception(error);
  }

  // The team that the calling thread leads, or null.
  static ThreadTeam*& current() {
    static thread_local ThreadTeam* team = nullptr;
    return team;
  }

  // The number of threads of a loop: the calling one, and those that wait.
  int64_t threads() const { return 1 + arrived_.load(std::memory_order_relaxed); }

  // Calls work(thread) once for every thread from 0 to threads - 1 at the same time; threads <= threads().
  template <typename Work>
  void call(int64_t threads, const Work& work) {
    job_ = [](const void* context, int64_t thread) { (*static_cast<const Work*>(context))(thread); };
    context_ = &work;
    unfinished_.store(threads - 1);
    call_ += kCall;
    state_.store(call_ | uint64_t(threads - 1));
    call_started_.notify();
    // A loop in the body of this loop must not become a call of the team, whose threads are busy: torch runs it
    // serially.
    ThreadTeam* const team = std::exchange(current(), nullptr);
    execute(0);
    current() = team;
    call_finished_.wait([this] { return unfinished_.load() == 0; });
    if (error_ != nullptr) {
      const std::exception_ptr error = error_;
      error_ = nullptr;
      std::rethrow_exception(error);
    }
  }

 private:
  static constexpr int64_t kMaxThreads = 64;  // less than kCall
  static constexpr uint64_t kCall = 256, kEnd = ~uint64_t(0);

  // A place where threads wait for a change of an atomic variable: first actively, for about a tenth of a millisecond
  // on processors with AMX, which is longer than most waits, and then asleep. On a busy machine, the thread that
  // is waited for may need this core, and a thread that has slept gets its core back sooner than one that has waited
  // actively.
  class WaitingPlace {
   public:
    // Returns when condition() is true. Whoever makes it true must call notify() afterwards.
    template <typename Condition>
    void wait(const Condition& condition) {
      for (int i = 0; i < kActiveWaits; ++i) {
        if (condition()) return;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
      pthread_mutex_lock(&mutex_);
      sleepers_.fetch_add(1);
      while (!condition()) pthread_cond_wait(&changed_, &mutex_);
      sleepers_.fetch_sub(1);
      pthread_mutex_unlock(&mutex_);
    }
    void notify() {
      // NOTE: the change of the variable and this load are sequentially consistent, as are the increment of the number
      // of sleepers and the load in condition(). One of both threads sees what the other one has written.
      if (sleepers_.load() == 0) return;
      pthread_mutex_lock(&mutex_);
      pthread_cond_broadcast(&changed_);
      pthread_mutex_unlock(&mutex_);
    }

   private:
    static constexpr int kActiveWaits = 3000;
    // NOTE: std::condition_variable would need a libstdc++ that is newer than what wheels may assume.
    pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t changed_ = PTHREAD_COND_INITIALIZER;
    std::atomic<int> sleepers_{0};
  };

  template <typename Body>
  void lead(const Body& body, std::exception_ptr& error) {
    current() = this;
    try {
      body();
    } catch (...) { error = std::current_exception(); }
    current() = nullptr;
    state_.store(kEnd);
    call_started_.notify();
  }

  // Takes part in the loops until the end of the team.
  void serve() {
    const uint64_t thread = uint64_t(1 + arrived_.fetch_add(1, std::memory_order_relaxed));
    uint64_t state = 0;
    while (true) {
      // The number of threads that take part is a part of the state: this thread may have arrived after the call began.
      const uint64_t seen = state;
      call_started_.wait([&] {
        state = state_.load();
        return state == kEnd || (state != seen && thread <= state % kCall);
      });
      if (state == kEnd) return;
      execute(int64_t(thread));
      if (unfinished_.fetch_sub(1) == 1) call_finished_.notify();
    }
  }

  void execute(int64_t thread) {
    try {
      job_(context_, thread);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(error_mutex_);
      if (error_ == nullptr) error_ = std::current_exception();
    }
  }

  void (*job_)(const void* context, int64_t thread) = nullptr;
  const void* context_ = nullptr;
  uint64_t call_ = 0;
  std::exception_ptr error_;
  std::mutex error_mutex_;
  WaitingPlace call_started_, call_finished_;
  alignas(64) std::atomic<uint64_t> state_{
      0};  // the number of the call times kCall, plus the threads besides the leader
  alignas(64) std::atomic<int64_t> unfinished_{0};
  alignas(64) std::atomic<int64_t> arrived_{0};
};

// The number of threads that parallel loops of the calling thread use now.
inline int64_t available_threads() {
  const ThreadTeam* team = ThreadTeam::current();
  return team == nullptr ? int64_t(torch::stable::get_num_threads()) : team->threads();
}

}  // namespace danet
