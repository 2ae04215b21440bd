// Waits: for lanes of a warp, for the barriers of a block and of a cluster, and for the end of threads.
#include <set>

#include "scheduler.h"

namespace emulation {
namespace scheduler {

Warp warps[kMaxSlots / kLanes];
Block blocks[kMaxClusterSize];
int thread_count, live_count;
uint32_t cluster_phase;
int cluster_arrived;
bool is_programmatic = false, has_started_early = false;

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

}  // namespace scheduler

using namespace scheduler;

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

}  // namespace emulation
