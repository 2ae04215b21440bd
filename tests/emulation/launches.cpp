// Launches: their checks, the clusters of blocks one after the other, and what the host reads afterwards.
#include <dlfcn.h>
#include <sys/mman.h>

#include "scheduler.h"

namespace emulation {

using namespace scheduler;

Settings settings;
Indices indices;
ExecutionState execution;

namespace {

std::atomic_flag busy = ATOMIC_FLAG_INIT;
thread_local void* current_stream = nullptr;  // null if there is no Device guard
std::atomic<uintptr_t> device_count = 0;
uint64_t launch_count = 0;
uint32_t last_launch_block = 1;  // the first block of the launch that may overlap with the next one
uint32_t block_count = 0;        // over all launches

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

}  // namespace emulation
