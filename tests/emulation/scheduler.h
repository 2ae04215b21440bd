// The state of the emulator that its source files share: threads (fibers), warps, blocks and the running launch.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "checker.h"
#include "emulation.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, bytes) ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(p, bytes) ((void)0)
#endif
#if !defined(__x86_64__) || defined(EMULATION_UCONTEXT)
#include <ucontext.h>
#endif

namespace emulation {
namespace scheduler {

constexpr int kMaxThreads = 1024, kLanes = 32, kMaxClusterSize = 8;
constexpr int kMaxSlots = kMaxThreads * kMaxClusterSize;  // threads that are alive at the same time
constexpr size_t kStackBytes = 256 * 1024, kPageBytes = 4096;
constexpr size_t kMaxSharedBytes = 227 * 1024, kMaxStaticSharedBytes = 48 * 1024;
constexpr size_t kGuardBytes = 512;  // between shared arrays, so that an overrun does not hit the next array
constexpr size_t kArenaBytes = 2 * kMaxSharedBytes + 256 * kGuardBytes;

#define EMULATION_CALLER __builtin_extract_return_addr(__builtin_return_address(0))

struct Fiber {
#if defined(__x86_64__) && !defined(EMULATION_UCONTEXT)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  char* stack = nullptr;
  size_t stack_bytes = 0;
  void* asan_state = nullptr;  // ASan's state while another fiber runs
};

constexpr const char* kClusterWait = "cluster_wait";

// A thread's wait for other threads of its cluster, block or warp.
struct Wait {
  const char* name;
  const char* file;
  int line;
  const void* pc;
  // For waits within a warp:
  uint32_t mask = 0;
  void* operand = nullptr;
  // Called when all lanes have arrived; another function for each kind of instruction.
  void (*exchange)(uint32_t lanes, void* const* operands) = nullptr;
  bool orders_memory = false;

  bool same_site(const Wait& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
  }
};

struct Copy {
  void* to;
  int bytes;
  bool landed;
  unsigned char data[16];
};

// A committed group: the number of copies up to its end. NOTE: a type of its own, because the linker might otherwise
// take the code of std::vector<int> from a kernel's object file, which contains the checker's hooks.
struct CopyGroup {
  int end;
};

struct Thread {
  Fiber* fiber = nullptr;  // null before it starts and after it has exited
  const Wait* wait = nullptr;
  uint3 index{};
  uint32_t arrivals = 0, waits = 0;  // at the barrier of the cluster
  std::vector<Copy> copies;
  std::vector<CopyGroup> groups;
};

struct Block {
  uint3 index;
  int live_count;
  // The barrier of the block: the wait of the first thread, and the threads that have arrived.
  const Wait* wait;
  int arrived, votes, vote_result;
  // Programmatic dependent launch: whether a thread has waited for the previous launch, or has started the next one.
  bool has_waited, has_started_next;
};

struct Warp {
  uint32_t lanes = 0;  // mask of the lanes that have not exited
  uint32_t waiting = 0;
};

// The queue of threads that can run; holds each thread at most once.
struct ReadyQueue {
  uint16_t threads[kMaxSlots];
  unsigned first = 0, count = 0;
  uint16_t& at(unsigned i) { return threads[(first + i) % kMaxSlots]; }
  void push(int thread) { at(count++) = uint16_t(thread); }
};

// An array in the shared memory of every block of the cluster.
struct SharedArray {
  size_t offset, bytes;
};

extern uint64_t random_state;

extern void (*kernel_body)(void*);
extern void* kernel_argument;
// The threads of a cluster. Block r has the numbers from r * execution.block_slots, a multiple of the lanes of a warp.
extern Thread threads[kMaxSlots];
extern Warp warps[kMaxSlots / kLanes];
extern Block blocks[kMaxClusterSize];
extern int thread_count, live_count;  // of a block, of the cluster
extern ReadyQueue ready;

// The barrier of the cluster: how often all threads have arrived, and how many have arrived since.
extern uint32_t cluster_phase;
extern int cluster_arrived;

// Programmatic dependent launch: whether the running launch is one, and whether one of its blocks has started the next
// launch before it waited for the previous one.
extern bool is_programmatic, has_started_early;

extern char* arena;
extern size_t arena_used, shared_used, dynamic_bytes;
extern std::vector<SharedArray> shared_arrays;

// The error that ended the running launch, and where it was found.
extern std::string failure;
extern const void* failure_pc;

uint64_t random_number();
inline bool is_random() { return settings.seed > 1; }
inline Block& current_block() { return blocks[execution.rank]; }
inline char* arena_of(int rank) { return arena + size_t(rank) * kArenaBytes; }
inline bool is_aligned(const void* p, int bytes) { return reinterpret_cast<uintptr_t>(p) % unsigned(bytes) == 0; }

// --- fibers.cpp ------------------------------------------------------------------------------------------------------

// Aborts the kernel with an error. No stack is unwound: the fibers are created anew before the next launch.
[[noreturn]] void fail(const std::string& text, const void* pc);
int next_ready();  // a thread that can run, or -1
// Switches to a thread, or back to the launch if thread < 0.
void resume(int thread);
// Suspends the current thread until another one has made it ready.
void yield_to_others();
// Makes all fibers as new, after an error.
void reset_fibers();

// --- waiting.cpp -----------------------------------------------------------------------------------------------------

std::string site(const Wait& wait);
void wait_for_lanes(const Wait& wait);
// If all threads of the cluster have arrived at its barrier, wakes those that wait.
void try_complete_cluster();
void finish_thread();
std::string deadlock();

// --- memory.cpp ------------------------------------------------------------------------------------------------------

// Whether the bytes lie in a shared array of the running block.
bool in_own_array(const void* p, size_t bytes);

}  // namespace scheduler
}  // namespace emulation
