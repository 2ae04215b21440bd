// The emulator: fibers and their scheduler, barriers, warps, shared memory, asynchronous copies, matrices, atomics.
#include "emulation.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "checker.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, bytes) ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(p, bytes) ((void)0)
#endif

#if defined(__x86_64__) && !defined(EMULATION_UCONTEXT)
// Context switch: pushes the callee-saved registers, stores the stack pointer to *save, and continues at stack `load`.
extern "C" __attribute__((visibility("hidden"))) void emulation_switch(void** save, void* load);
asm(R"(
  .text
  .globl emulation_switch
  .hidden emulation_switch
  .type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emulation_switch, .-emulation_switch
)");
#else
#include <ucontext.h>
#endif

namespace emulation {

Settings settings;
Indices indices;
ExecutionState execution;

namespace {

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

std::atomic_flag busy = ATOMIC_FLAG_INIT;
thread_local void* current_stream = nullptr;  // null if there is no Device guard
std::atomic<uintptr_t> device_count = 0;
uint64_t launch_count = 0;
uint64_t random_state = 0;

void (*kernel_body)(void*);
void* kernel_argument;
// The threads of a cluster. Block r has the numbers from r * execution.block_slots, a multiple of the lanes of a warp.
Thread threads[kMaxSlots];
Warp warps[kMaxSlots / kLanes];
Block blocks[kMaxClusterSize];
int thread_count, live_count;  // of a block, of the cluster
ReadyQueue ready;

// The barrier of the cluster: how often all threads have arrived, and how many have arrived since.
uint32_t cluster_phase;
int cluster_arrived;

// The launch that may overlap with the next one, if that is programmatic: its first block, and whether one of its blocks
// has started the next launch before it waited for the previous one.
uint32_t last_launch_block = 1;
bool is_programmatic = false, has_started_early = false;
uint32_t block_count = 0;  // over all launches

Fiber fibers[kMaxSlots], main_fiber;
Fiber *running = &main_fiber, *previous = nullptr;
int fiber_count = 0;
Fiber* idle[kMaxSlots];
int idle_count = 0;

char* arena = nullptr;
size_t arena_used, shared_used, dynamic_bytes;
std::vector<SharedArray> shared_arrays;

std::string failure;
const void* failure_pc;

uint64_t random_number() {  // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}
bool is_random() { return settings.seed > 1; }

// --- fibers ----------------------------------------------------------------------------------------------------------

// Completes a context switch, on the new stack.
void finish_switch([[maybe_unused]] Fiber& at) {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(at.asan_state, &stack, &bytes);
  if (previous != &main_fiber) return;
  main_fiber.stack = static_cast<char*>(const_cast<void*>(stack)), main_fiber.stack_bytes = bytes;
#endif
}

void switch_to(Fiber* to) {
  Fiber* from = running;
  previous = from, running = to;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from->asan_state, to->stack, to->stack_bytes);
#endif
#if defined(__x86_64__) && !defined(EMULATION_UCONTEXT)
  emulation_switch(&from->stack_pointer, to->stack_pointer);
#else
  swapcontext(&from->context, &to->context);
#endif
  finish_switch(*from);
}

// Aborts the kernel with an error. No stack is unwound: the fibers are created anew before the next launch.
[[noreturn]] void fail(const std::string& text, const void* pc) {
  if (execution.thread < 0) throw std::runtime_error("emulation: outside a kernel: " + text);
  failure = text + " (" + thread_name(execution.thread) + ")";
  failure_pc = pc;
  switch_to(&main_fiber);
  __builtin_unreachable();
}

void make_current(int thread) {
  execution.thread = thread;
  indices.thread = threads[thread].index;
  if (execution.cluster_size == 1) return;
  execution.rank = thread / execution.block_slots;
  execution.block = execution.cluster_block + uint32_t(execution.rank);
  indices.block = blocks[execution.rank].index;
}

Block& current_block() { return blocks[execution.rank]; }
char* arena_of(int rank) { return arena + size_t(rank) * kArenaBytes; }

int next_ready() {
  if (ready.count == 0) return -1;
  if (is_random()) std::swap(ready.at(unsigned(random_number() % ready.count)), ready.at(0));
  const int thread = ready.at(0);
  ready.first = (ready.first + 1) % kMaxSlots, --ready.count;
  return thread;
}

void prepare(Fiber& fiber);

// Switches to a thread, or back to the launch if thread < 0.
void resume(int thread) {
  if (thread < 0) return switch_to(&main_fiber);
  Thread& next = threads[thread];
  if (next.fiber == nullptr) {
    if (idle_count == 0) {
      prepare(fibers[fiber_count]);
      idle[idle_count++] = &fibers[fiber_count++];
    }
    next.fiber = idle[--idle_count];
  }
  make_current(thread);
  if (next.fiber != running) switch_to(next.fiber);
}

// Suspends the current thread until another one has made it ready.
void yield_to_others() {
  const int self = execution.thread;
  resume(next_ready());
  make_current(self);
}

void finish_thread();

void fiber_main() {
  finish_switch(*running);
  for (;;) {
    kernel_body(kernel_argument);
    finish_thread();
    const int next = next_ready();
    if (next >= 0 && threads[next].fiber == nullptr) {  // a new thread starts on this stack, without a switch
      threads[next].fiber = running;
      make_current(next);
    } else {
      idle[idle_count++] = running;
      resume(next);
    }
  }
}

void prepare(Fiber& fiber) {
  if (fiber.stack == nullptr) {
    fiber.stack = const_cast<char*>(execution.stacks) + size_t(&fiber - fibers) * kStackBytes + kPageBytes;
    fiber.stack_bytes = kStackBytes - kPageBytes;
    mprotect(fiber.stack - kPageBytes, kPageBytes, PROT_NONE);
  }
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack, fiber.stack_bytes);
  fiber.asan_state = nullptr;
#if defined(__x86_64__) && !defined(EMULATION_UCONTEXT)
  void** top = reinterpret_cast<void**>(fiber.stack + fiber.stack_bytes) - 2;  // aligned as after a call: 16n - 8
  top[0] = reinterpret_cast<void*>(fiber_main), top[1] = nullptr;
  fiber.stack_pointer = top - 6;
  std::memset(fiber.stack_pointer, 0, 6 * sizeof(void*));
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack, fiber.context.uc_stack.ss_size = fiber.stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
#endif
}

// --- waiting ---------------------------------------------------------------------------------------------------------

std::string site(const Wait& wait) {
  const char* name = std::strrchr(wait.file, '/');
  return std::string(wait.name) + " (" + (name ? name + 1 : wait.file) + ":" + std::to_string(wait.line) + ")";
}

bool same_wait(const Wait& a, const Wait& b) { return a.exchange == b.exchange && a.mask == b.mask && a.same_site(b); }

// If all lanes of the wait have arrived, exchanges their operands and returns the mask of the lanes; else returns 0.
uint32_t try_complete(int warp, const Wait& wait) {
  const uint32_t lanes = wait.mask & warps[warp].lanes;
  if ((warps[warp].waiting & lanes) != lanes) return 0;
  void* operands[kLanes] = {};
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    const Wait* other = threads[warp * kLanes + lane].wait;
    if (other != &wait && !same_wait(*other, wait)) return 0;
    operands[lane] = other->operand;
  }
  wait.exchange(lanes, operands);
  if (wait.orders_memory) checker::order_warp(warp, lanes);
  warps[warp].waiting &= ~lanes;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) threads[warp * kLanes + __builtin_ctz(rest)].wait = nullptr;
  return lanes;
}

void make_ready(int warp, uint32_t lanes) {
  if (settings.seed != 1) {
    for (; lanes != 0; lanes &= lanes - 1) ready.push(warp * kLanes + __builtin_ctz(lanes));
  } else {
    for (int lane = kLanes - 1; lane >= 0; --lane)
      if (lanes >> lane & 1) ready.push(warp * kLanes + lane);
  }
}

void wait_for_lanes(const Wait& wait) {
  if (execution.thread < 0) fail(wait.name, wait.pc);
  const int self = execution.thread, warp = self / kLanes;
  const uint32_t bit = 1u << self % kLanes;
  if ((wait.mask & bit) == 0) fail(std::string(wait.name) + " by a lane that is not in its mask", wait.pc);
  // Comparing with one waiting lane is enough: all lanes that wait in a group have the same wait.
  if (const uint32_t there = wait.mask & warps[warp].waiting) {
    const Wait& other = *threads[warp * kLanes + __builtin_ctz(there)].wait;
    if ((other.mask & bit) && !same_wait(other, wait))
      fail("lanes of a warp diverged: " + site(wait) + ", others wait in " + site(other), wait.pc);
  }
  threads[self].wait = &wait;
  warps[warp].waiting |= bit;
  if (const uint32_t lanes = try_complete(warp, wait)) {
    if (!is_random()) return make_ready(warp, lanes & ~bit);
    make_ready(warp, lanes);
  }
  yield_to_others();
}

// If all threads of the cluster have arrived at its barrier, wakes those that wait.
void try_complete_cluster() {
  if (cluster_arrived == 0 || cluster_arrived != live_count) return;
  ++cluster_phase, cluster_arrived = 0;
  const int slots = int(execution.cluster_size) * execution.block_slots;
  for (int i = 0; i < slots; ++i) {
    const int slot = settings.seed == 1 ? slots - 1 - i : i;
    if (threads[slot].fiber == nullptr || !threads[slot].wait || threads[slot].wait->name != kClusterWait) continue;
    threads[slot].wait = nullptr;
    ready.push(slot);
  }
}

// Ends a block. Other blocks of the cluster must no longer access its shared memory.
void finish_block() {
  if (is_programmatic && !current_block().has_waited)
    fail("a block of a programmatic launch exits without a wait for the previous launch", nullptr);
  checker::exit_block();
  if (execution.cluster_size == 1) return;
  std::memset(arena_of(execution.rank) + kGuardBytes, 0xff, dynamic_bytes);
  for (const SharedArray& array : shared_arrays) std::memset(arena_of(execution.rank) + array.offset, 0xff, array.bytes);
  ASAN_POISON_MEMORY_REGION(arena_of(execution.rank), kArenaBytes);
}

void finish_thread() {
  const int self = execution.thread, warp = self / kLanes;
  Thread& thread = threads[self];
  Block& block = current_block();
  if (!thread.copies.empty()) fail("the thread exits with asynchronous copies that no wait covers", nullptr);
  if (block.wait) fail("the thread exits while others wait in " + site(*block.wait), block.wait->pc);
  if (block.live_count == 1) finish_block();
  thread.fiber = nullptr;
  --block.live_count, --live_count;
  cluster_arrived -= thread.arrivals > cluster_phase;
  try_complete_cluster();
  warps[warp].lanes &= ~(1u << self % kLanes);
  for (uint32_t rest = warps[warp].waiting; rest != 0; rest &= rest - 1) {
    const Wait* wait = threads[warp * kLanes + __builtin_ctz(rest)].wait;
    if (wait == nullptr) continue;  // already released
    if (wait->mask >> self % kLanes & 1) make_ready(warp, try_complete(warp, *wait));
  }
}

std::string deadlock() {
  const int slots = int(execution.cluster_size) * execution.block_slots;
  std::string text = "deadlock: " + std::to_string(live_count) + " of " +
                     std::to_string(int(execution.cluster_size) * thread_count) + " threads wait for each other or for some that have exited";
  std::set<std::string> sites;
  for (int i = 0; i < slots; ++i)
    if (const Wait* wait = threads[i].wait; wait && sites.insert(site(*wait)).second)
      text += "; " + thread_name(i) + " in " + site(*wait) + " at " + source_of(wait->pc);
  return text;
}

// --- launches --------------------------------------------------------------------------------------------------------

// Starts the blocks of the cluster whose first block has this number in the grid.
void start_cluster(uint64_t number) {
  const dim3& grid = indices.grid_size;
  const int size = int(execution.cluster_size);
  execution.cluster_block = execution.block = block_count + 1;
  execution.rank = 0;
  block_count += unsigned(size);
  for (int rank = 0; rank < size; ++rank) {
    const uint64_t n = number + unsigned(rank);
    blocks[rank] = {};
    blocks[rank].index = {unsigned(n % grid.x), unsigned(n / grid.x % grid.y), unsigned(n / grid.x / grid.y)};
    blocks[rank].live_count = thread_count;
    // Everything outside arrays stays poisoned. Array bytes are 0xff, which is NaN in every format.
    char* memory = arena_of(rank);
    ASAN_UNPOISON_MEMORY_REGION(memory, kGuardBytes + dynamic_bytes);
    std::memset(memory + kGuardBytes, 0xff, dynamic_bytes);
    ASAN_POISON_MEMORY_REGION(memory, kArenaBytes);
    ASAN_UNPOISON_MEMORY_REGION(memory + kGuardBytes, dynamic_bytes);
  }
  indices.block = blocks[0].index;
  shared_arrays.clear();
  shared_arrays.push_back({kGuardBytes, dynamic_bytes});
  arena_used = kGuardBytes + dynamic_bytes, shared_used = dynamic_bytes;
  checker::start_cluster();

  live_count = size * thread_count, cluster_phase = 0, cluster_arrived = 0;
  ready.first = ready.count = 0;
  for (int rank = 0; rank < size; ++rank) {
    const int first = rank * execution.block_slots;
    for (int i = 0; i < thread_count; i += kLanes)
      warps[(first + i) / kLanes] = {thread_count - i >= kLanes ? ~0u : (1u << (thread_count - i)) - 1, 0};
    for (int i = 0; i < thread_count; ++i) threads[first + i].arrivals = threads[first + i].waits = 0;
  }
  for (int i = 0; i < live_count; ++i) {
    const int n = settings.seed == 1 ? live_count - 1 - i : i;
    ready.push(n / thread_count * execution.block_slots + n % thread_count);
  }
}

void check_sizes(const LaunchSizes& sizes) {
  const dim3 &grid = sizes.grid, &block = sizes.block;
  const uint64_t count = uint64_t(block.x) * block.y * block.z;
  if (count == 0 || count > kMaxThreads || block.z > 64) throw std::runtime_error("invalid size of the block");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    throw std::runtime_error("invalid size of the grid");
  if (sizes.cluster < 1 || sizes.cluster > kMaxClusterSize || grid.x % sizes.cluster != 0)
    throw std::runtime_error("invalid size of the cluster");
  if (sizes.cluster > 1 && !settings.has_clusters) throw std::runtime_error("the device has no clusters");
  if (sizes.shared_bytes > std::min(settings.shared_limit, kMaxSharedBytes))
    throw std::runtime_error("too much shared memory: " + std::to_string(sizes.shared_bytes) + " bytes");
}

void start_launch(const LaunchSizes& sizes) {
  check_sizes(sizes);
  const dim3& block = sizes.block;
  if (arena == nullptr) {
    auto map = [](size_t bytes) {
      void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p == MAP_FAILED) throw std::bad_alloc();
      return static_cast<char*>(p);
    };
    execution.stacks = map(kMaxSlots * kStackBytes);
    execution.stacks_end = execution.stacks + kMaxSlots * kStackBytes;
    arena = map(kMaxClusterSize * kArenaBytes);
    execution.shared = arena, execution.shared_end = arena + kMaxClusterSize * kArenaBytes;
    execution.arena_bytes = kArenaBytes;
  }
  dynamic_bytes = sizes.shared_bytes;
  thread_count = int(block.x * block.y * block.z);
  execution.cluster_size = sizes.cluster;
  execution.block_slots = (thread_count + kLanes - 1) / kLanes * kLanes;
  indices.grid_size = sizes.grid, indices.block_size = block;
  for (int i = 0; i < int(sizes.cluster) * execution.block_slots; ++i) {
    const unsigned n = unsigned(i % execution.block_slots);
    threads[i].index = {n % block.x, n / block.x % block.y, n / block.x / block.y};
  }
  ++launch_count;
  random_state = settings.seed * 0x632be59bd9b4e019 + launch_count;
  // If the last launch may have started this one before it waited itself, the launches before it may still run, too.
  const uint32_t running = is_programmatic && has_started_early ? execution.overlap_block : last_launch_block;
  execution.first_block = block_count + 1;
  execution.overlap_block = sizes.programmatic ? running : execution.first_block;
  last_launch_block = execution.first_block;
  is_programmatic = sizes.programmatic, has_started_early = false;
  checker::start_launch();
}

void reset_fibers() {
  idle_count = 0;
  for (int i = 0; i < fiber_count; ++i) {
    prepare(fibers[i]);
    idle[idle_count++] = &fibers[i];
  }
  for (Thread& thread : threads) {
    thread.fiber = nullptr, thread.wait = nullptr;
    thread.copies.clear(), thread.groups.clear();
  }
}

void run_clusters() {
  const dim3 grid = indices.grid_size;
  const uint64_t size = execution.cluster_size, count = uint64_t(grid.x) * grid.y * grid.z / size;
  std::vector<uint64_t> order;
  if (is_random()) {
    order.resize(count);
    for (uint64_t i = 0; i < count; ++i) order[i] = i;
    for (uint64_t i = count; i > 1; --i) std::swap(order[i - 1], order[random_number() % i]);
  }
  for (uint64_t i = 0; i < count; ++i) {
    start_cluster(size * (is_random() ? order[i] : settings.seed == 1 ? count - 1 - i : i));
    resume(next_ready());
    execution.thread = -1;
    if (failure.empty() && live_count == 0) continue;
    std::string text;
    if (failure.empty())
      text = deadlock();
    else
      text = failure_pc ? failure + " at " + source_of(failure_pc) : failure;
    failure.clear();
    reset_fibers();
    throw std::runtime_error(text);
  }
}

}  // namespace

Device::Device() : stream_(reinterpret_cast<void*>(++device_count)), outer_(current_stream) {
  current_stream = stream_;
}
Device::~Device() { current_stream = outer_; }

void run(const char* op, const LaunchSizes& sizes, void* stream, void (*body)(void*), void* argument) {
  if (stream == nullptr || stream != current_stream)
    throw std::runtime_error(std::string(op) + ": not launched on the current stream of a guarded device");
  if (busy.test_and_set()) throw std::runtime_error(std::string(op) + ": the emulator runs another kernel");
  kernel_body = body, kernel_argument = argument;
  std::string error;
  try {
    start_launch(sizes);
    run_clusters();
  } catch (const std::exception& e) { error = std::string(op) + ": " + e.what(); }
  if (arena != nullptr) ASAN_UNPOISON_MEMORY_REGION(arena, kMaxClusterSize * kArenaBytes);
  busy.clear();
  if (error.empty()) return;
  synchronize();
  throw std::runtime_error(error);
}

void synchronize() { last_launch_block = block_count + 1, is_programmatic = has_started_early = false; }

uint64_t launches() { return launch_count; }

bool observe(const LaunchRecord& record) {
  const bool skip = settings.observer(record);
  launch_count += skip;
  return skip;
}

std::string RaceReport::text() const {
  const std::string text = kind + ": " + memory + " memory at " + source + " by " + thread;
  return other_source.empty() ? text : text + ", other at " + other_source + " by " + other_thread;
}

#if !defined(EMULATION_CHECKED)
std::vector<RaceReport> reports() { return {}; }
void clear_reports() {}
std::vector<AccessRecord> take_trace() { return {}; }
std::string source_of_site(uint32_t) { return {}; }
#endif

std::string thread_name(int thread) {
  const uint3 b = blocks[thread / execution.block_slots].index, t = threads[thread].index;
  char text[120];
  std::snprintf(text, sizeof text, "block (%u,%u,%u) thread (%u,%u,%u)", b.x, b.y, b.z, t.x, t.y, t.z);
  return text;
}

std::string source_of(const void* pc) {
  Dl_info info;
  if (pc == nullptr || dladdr(pc, &info) == 0) return "?";
  char command[600];
  const auto offset = static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase) - 1;
  std::snprintf(command, sizeof command, "addr2line -i -e '%s' %#zx 2>&1", info.dli_fname, size_t(offset));
  std::string text;
  if (FILE* lines = popen(command, "r")) {
    char line[1000];
    while (std::fgets(line, sizeof line, lines)) {
      line[std::strcspn(line, " \n")] = 0;  // also removes " (discriminator 2)"
      const char* name = std::strrchr(line, '/');
      name = name ? name + 1 : line;
      if (std::strncmp(name, "emulation.h:", 12) == 0) continue;
      text += (text.empty() ? "" : " < ") + std::string(name);
    }
    pclose(lines);
  }
  const size_t launcher = text.rfind(" < gpu.cuh:");  // gpu::launch, if the kernel is inlined into it
  return launcher != std::string::npos && text.find(" < ", launcher + 3) == std::string::npos ? text.substr(0, launcher)
                                                                                              : text;
}

// --- blocks and warps ------------------------------------------------------------------------------------------------

int lane() { return execution.thread % kLanes; }

int wait_for_block(bool predicate, const char* file, int line) {
  const Wait wait{"__syncthreads", file, line, EMULATION_CALLER};
  if (execution.thread < 0) fail(wait.name, wait.pc);
  Block& block = current_block();
  if (const int gone = thread_count - block.live_count)
    fail(site(wait) + " after " + std::to_string(gone) + " threads of the block have exited", wait.pc);
  if (block.wait && !block.wait->same_site(wait))
    fail("threads of the block diverged: " + site(wait) + ", others wait in " + site(*block.wait), wait.pc);
  if (block.arrived == 0) block.wait = &wait;
  threads[execution.thread].wait = &wait;
  block.votes += predicate;
  if (++block.arrived == thread_count) {
    block.vote_result = block.votes;  // valid until all threads have arrived at the next barrier
    block.arrived = block.votes = 0, block.wait = nullptr;
    for (int i = 0; i < thread_count; ++i) {
      const int thread = execution.rank * execution.block_slots + (settings.seed == 1 ? thread_count - 1 - i : i);
      threads[thread].wait = nullptr;
      ready.push(thread);
    }
    checker::order_block();
  }
  yield_to_others();
  return block.vote_result;
}

void wait_for_warp(uint32_t mask, const char* file, int line) {
  auto nothing = [](uint32_t, void* const*) {};
  wait_for_lanes({"__syncwarp", file, line, EMULATION_CALLER, mask, nullptr, nothing, true});
}

void fence() { checker::fence(); }

// --- clusters and programmatic dependent launch ----------------------------------------------------------------------

unsigned cluster_rank() { return unsigned(execution.rank); }
unsigned cluster_size() { return execution.cluster_size; }

void cluster_arrive() {
  const void* pc = EMULATION_CALLER;
  if (execution.thread < 0) fail("cluster_arrive", pc);
  Thread& thread = threads[execution.thread];
  if (thread.arrivals != thread.waits) fail("cluster_arrive without a cluster_wait since the last one", pc);
  ++thread.arrivals, ++cluster_arrived;
  checker::cluster_arrive();
  try_complete_cluster();
}

void cluster_wait(const char* file, int line) {
  const Wait wait{kClusterWait, file, line, EMULATION_CALLER};
  if (execution.thread < 0) fail(wait.name, wait.pc);
  Thread& thread = threads[execution.thread];
  if (thread.arrivals == thread.waits) fail("cluster_wait without a cluster_arrive", wait.pc);
  if (cluster_phase < thread.arrivals) {
    thread.wait = &wait;
    yield_to_others();
  }
  ++thread.waits;
  checker::cluster_wait();
}

void* map_shared(void* shared, unsigned rank) {
  const void* pc = EMULATION_CALLER;
  if (execution.thread < 0 || rank >= execution.cluster_size) fail("map_shared to a block outside the cluster", pc);
  if (shared < arena_of(execution.rank) || shared >= arena_of(execution.rank + 1))
    fail("map_shared of an address outside the shared memory of the block", pc);
  return static_cast<char*>(shared) + (int(rank) - execution.rank) * ptrdiff_t(kArenaBytes);
}

void wait_for_previous_launch() {
  if (execution.thread < 0) fail("wait_for_previous_launch", EMULATION_CALLER);
  current_block().has_waited = true;
  checker::wait_for_previous_launch();
}

void start_next_launch() {
  if (execution.thread < 0) fail("start_next_launch", EMULATION_CALLER);
  Block& block = current_block();
  has_started_early |= !block.has_started_next && !block.has_waited;
  block.has_started_next = true;
}

bool has_exited(int rank) { return blocks[rank].live_count == 0; }

namespace {
struct ShuffleOperand {
  uint64_t value, result;
  int source;
  bool wrong;
};
void shuffle_values(uint32_t lanes, void* const* operands) {
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    ShuffleOperand& mine = *static_cast<ShuffleOperand*>(operands[__builtin_ctz(rest)]);
    mine.wrong = (lanes >> mine.source & 1) == 0;
    if (!mine.wrong) mine.result = static_cast<ShuffleOperand*>(operands[mine.source])->value;
  }
}
struct VoteOperand {
  bool predicate;
  uint32_t result;
};
void count_votes(uint32_t lanes, void* const* operands) {
  uint32_t result = 0;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    result |= uint32_t(static_cast<VoteOperand*>(operands[lane])->predicate) << lane;
  }
  for (; lanes != 0; lanes &= lanes - 1) static_cast<VoteOperand*>(operands[__builtin_ctz(lanes)])->result = result;
}
}  // namespace

uint64_t shuffle(uint32_t mask, uint64_t value, int source, bool own, const char* file, int line) {
  ShuffleOperand operand{value, value, own ? lane() : source, false};
  const void* pc = EMULATION_CALLER;
  wait_for_lanes({"shuffle", file, line, pc, mask, &operand, shuffle_values});
  if (operand.wrong)
    fail("shuffle from lane " + std::to_string(source) + ", which is not in the mask or has exited", pc);
  return operand.result;
}

uint32_t ballot(uint32_t mask, bool predicate, const char* file, int line) {
  VoteOperand operand{predicate, 0};
  wait_for_lanes({"vote", file, line, EMULATION_CALLER, mask, &operand, count_votes});
  return operand.result;
}

void trap(const char* file, int line) {
  fail("__trap at " + std::string(file) + ":" + std::to_string(line), EMULATION_CALLER);
}

// --- shared memory ---------------------------------------------------------------------------------------------------

void* dynamic_shared() { return dynamic_bytes > 0 ? arena_of(execution.rank) + kGuardBytes : nullptr; }

void* shared_variable(SharedVariable& variable, size_t bytes, size_t alignment) {
  if (execution.thread < 0) fail("use of a shared variable", EMULATION_CALLER);
  if (variable.first_block == execution.cluster_block) return arena_of(execution.rank) + variable.offset;
  alignment = std::max<size_t>(alignment, 16);
  shared_used = (shared_used + alignment - 1) / alignment * alignment + bytes;
  if (shared_used - dynamic_bytes > kMaxStaticSharedBytes || shared_used > settings.shared_limit)
    fail("too much shared memory: " + std::to_string(shared_used) + " bytes", EMULATION_CALLER);
  const size_t offset = (arena_used + kGuardBytes + alignment - 1) / alignment * alignment;
  arena_used = offset + bytes;
  if (arena_used > kArenaBytes) fail("too many shared variables", EMULATION_CALLER);
  for (int rank = 0; rank < int(execution.cluster_size); ++rank) {
    if (has_exited(rank)) continue;
    ASAN_UNPOISON_MEMORY_REGION(arena_of(rank) + offset, bytes);
    std::memset(arena_of(rank) + offset, 0xff, bytes);
  }
  shared_arrays.push_back({offset, bytes});
  variable = {execution.cluster_block, offset};
  return arena_of(execution.rank) + offset;
}

bool in_shared_array(const void* p, size_t bytes) {
  const char* begin = static_cast<const char*>(p);
  if (begin < arena || begin >= arena_of(int(execution.cluster_size))) return false;
  const size_t offset = size_t(begin - arena) % kArenaBytes;
  for (const SharedArray& array : shared_arrays)
    if (offset >= array.offset && offset + bytes <= array.offset + array.bytes) return true;
  return false;
}

// Whether the bytes lie in an array of the running block.
static bool in_own_array(const void* p, size_t bytes) {
  return in_shared_array(p, bytes) && rank_of(p) == execution.rank;
}

// --- asynchronous copies ---------------------------------------------------------------------------------------------

namespace {
bool is_aligned(const void* p, int bytes) { return reinterpret_cast<uintptr_t>(p) % unsigned(bytes) == 0; }

void land(Thread& thread, int count, const void* pc) {
  for (int i = 0; i < count; ++i) {
    const Copy& copy = thread.copies[i];
    checker::set_pending(copy.to, copy.bytes, false);
    checker::access(copy.to, copy.bytes, Access::kWrite, pc, execution.thread);
    if (!copy.landed) std::memcpy(copy.to, copy.data, copy.bytes);
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + count);
}
}  // namespace

// A copy lands at the wait, which is the latest possible time, or with a random seed also immediately. Until it has
// landed, its destination is poisoned.
void cp_async(void* shared, const void* global, int bytes, int bytes_read) {
  const void* pc = EMULATION_CALLER;
  if (!is_aligned(shared, bytes) || (bytes_read > 0 && !is_aligned(global, bytes)))
    fail("misaligned asynchronous copy of " + std::to_string(bytes) + " bytes", pc);
  if (!in_own_array(shared, bytes)) fail("asynchronous copy to an address outside the shared arrays", pc);
  Copy copy{shared, bytes, is_random() && (random_number() & 1), {}};
  if (bytes_read > 0) checker::access(global, bytes_read, Access::kRead, pc, execution.thread);
  checker::access(shared, bytes, Access::kWrite, pc, execution.thread);
  checker::set_pending(shared, bytes, true);
  if (bytes_read > 0) std::memcpy(copy.data, global, bytes_read);
  if (copy.landed)
    std::memcpy(shared, copy.data, bytes);
  else
    std::memset(shared, 0xff, bytes);
  threads[execution.thread].copies.push_back(copy);
}

void cp_async_commit() {
  Thread& thread = threads[execution.thread];
  thread.groups.push_back({int(thread.copies.size())});
}

void cp_async_wait(int pending) {
  Thread& thread = threads[execution.thread];
  const int done = int(thread.groups.size()) - pending;
  if (done <= 0) return;
  const int copies = thread.groups[done - 1].end;
  land(thread, copies, EMULATION_CALLER);
  thread.groups.erase(thread.groups.begin(), thread.groups.begin() + done);
  for (CopyGroup& group : thread.groups) group.end -= copies;
}

// --- matrices --------------------------------------------------------------------------------------------------------

namespace {

struct LdmatrixOperands {
  uint32_t* to;
  const void* row;
  bool transposed;
  const void* pc;
};

void read_matrices(uint32_t, void* const* operands) {
  const int first = execution.thread / kLanes * kLanes;
  for (int i = 0; i < 4; ++i) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row) {
      const LdmatrixOperands& from = *static_cast<LdmatrixOperands*>(operands[8 * i + row]);
      std::memcpy(matrix[row], from.row, sizeof matrix[row]);
      // Record the read for two of the lanes that receive elements of this row: at least one of them did not write it.
      const int one = from.transposed ? row / 2 : row * 4, two = from.transposed ? row / 2 + 4 : row * 4 + 1;
      checker::access(from.row, 16, Access::kRead, from.pc, first + one);
      checker::access(from.row, 16, Access::kRead, from.pc, first + two);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const LdmatrixOperands& mine = *static_cast<LdmatrixOperands*>(operands[lane]);
      const int row = lane / 4, column = lane % 4 * 2;
      const uint32_t low = mine.transposed ? matrix[column][row] : matrix[row][column];
      const uint32_t high = mine.transposed ? matrix[column + 1][row] : matrix[row][column + 1];
      mine.to[i] = low | high << 16;
    }
  }
}

struct MmaOperands {
  float* d;
  const uint32_t *a, *b;
};
template <typename T>
float unpack_half(uint32_t pair, int i) {
  return to_float(T{uint16_t(pair >> 16 * i)});
}

// d[16][8] += a[16][k] * b[k][8]; every element is rounded once.
template <int k>
void multiply(const float (&a)[16][k], const float (&b)[k][8], void* const* operands) {
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float& d = static_cast<MmaOperands*>(operands[row % 8 * 4 + column / 2])->d[row / 8 * 2 + column % 2];
      double sum = d;
      for (int i = 0; i < k; ++i) sum += double(a[row][i]) * double(b[i][column]);
      d = float(sum);
    }
}

template <typename T>
void multiply_halves(uint32_t, void* const* operands) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const MmaOperands& mine = *static_cast<MmaOperands*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 2; ++j) a[g + i % 2 * 8][2 * t + j + i / 2 * 8] = unpack_half<T>(mine.a[i], j);
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) b[2 * t + j + i * 8][g] = unpack_half<T>(mine.b[i], j);
  }
  multiply(a, b, operands);
}

void multiply_tf32s(uint32_t, void* const* operands) {
  float a[16][8], b[8][8];
  auto value = [](uint32_t bits) { return bits_as<float>(bits & ~0x1fffu); };  // the bits that the tensor cores use
  for (int lane = 0; lane < kLanes; ++lane) {
    const MmaOperands& mine = *static_cast<MmaOperands*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 4] = value(mine.a[i]);
    for (int i = 0; i < 2; ++i) b[t + i * 4][g] = value(mine.b[i]);
  }
  multiply(a, b, operands);
}

// For instructions that require all 32 lanes. The source position is a dummy: all callers are in ptx.cuh.
void wait_for_full_warp(const char* name, void* operand, void (*exchange)(uint32_t, void* const*), const void* pc) {
  if (execution.thread < 0 || warps[execution.thread / kLanes].lanes != ~0u)
    fail(std::string(name) + " in a warp with exited or missing lanes", pc);
  wait_for_lanes({name, "ptx.cuh", 0, pc, ~0u, operand, exchange});
}

}  // namespace

void ldmatrix_x4(uint32_t* matrices, const void* shared_row, bool transposed) {
  const void* pc = EMULATION_CALLER;
  if (!is_aligned(shared_row, 16)) fail("misaligned ldmatrix_x4", pc);
  if (!in_own_array(shared_row, 16)) fail("ldmatrix_x4 of an address outside the shared arrays", pc);
  LdmatrixOperands operand{matrices, shared_row, transposed, pc};
  wait_for_full_warp("ldmatrix_x4", &operand, read_matrices, pc);
}
void multiply_half(float* d, const uint32_t* a, const uint32_t* b) {
  MmaOperands operand{d, a, b};
  wait_for_full_warp("mma_m16n8k16", &operand, multiply_halves<danet::Half>, EMULATION_CALLER);
}
void multiply_bfloat16(float* d, const uint32_t* a, const uint32_t* b) {
  MmaOperands operand{d, a, b};
  wait_for_full_warp("mma_m16n8k16", &operand, multiply_halves<danet::BFloat16>, EMULATION_CALLER);
}
void multiply_tf32(float* d, const uint32_t* a, const uint32_t* b) {
  MmaOperands operand{d, a, b};
  wait_for_full_warp("mma_m16n8k8_tf32", &operand, multiply_tf32s, EMULATION_CALLER);
}

// --- atomics ---------------------------------------------------------------------------------------------------------

// Threads are never preempted, so any update is atomic.
template <typename T, typename Update>
static T update(T* p, const Update& result, const void* pc) {
  if (!is_aligned(p, sizeof(T))) fail("misaligned atomic", pc);
  checker::access(p, sizeof(T), Access::kAtomic, pc, execution.thread);
  const T old = *p;
  *p = result(old);
  return old;
}

}  // namespace emulation

#define EMULATION_ATOMIC(T, name, result)                                                             \
  T name(T* p, T value) {                                                                             \
    return emulation::update(p, [&]([[maybe_unused]] T old) -> T { return result; }, EMULATION_CALLER);                \
  }
EMULATION_ATOMIC(float, atomicAdd, old + value)
EMULATION_ATOMIC(double, atomicAdd, old + value)
EMULATION_ATOMIC(int, atomicAdd, int(unsigned(old) + unsigned(value)))
EMULATION_ATOMIC(unsigned, atomicAdd, old + value)
EMULATION_ATOMIC(unsigned long long, atomicAdd, old + value)
EMULATION_ATOMIC(int, atomicMax, std::max(old, value))
EMULATION_ATOMIC(unsigned, atomicMax, std::max(old, value))
EMULATION_ATOMIC(int, atomicMin, std::min(old, value))
EMULATION_ATOMIC(unsigned, atomicMin, std::min(old, value))
EMULATION_ATOMIC(int, atomicExch, value)
EMULATION_ATOMIC(unsigned, atomicExch, value)

#define EMULATION_CAS(T)                                                                                           \
  T atomicCAS(T* p, T expected, T value) {                                                                         \
    return emulation::update(p, [&](T old) { return old == expected ? value : old; }, EMULATION_CALLER);           \
  }
EMULATION_CAS(int)
EMULATION_CAS(unsigned)
EMULATION_CAS(unsigned long long)

// assert() in a kernel aborts the launch, not the process.
extern "C" __attribute__((visibility("hidden"))) void __assert_fail(
    const char* text, const char* file, unsigned line, const char*) noexcept {
  std::string what = "assert(" + std::string(text) + ") fails at " + file + ":" + std::to_string(line);
  if (emulation::execution.thread >= 0) emulation::fail(what, EMULATION_CALLER);
  std::fprintf(stderr, "%s\n", what.c_str());
  std::abort();
}
