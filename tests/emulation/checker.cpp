// The happens-before checker: see checker.h. Shadow memory holds, for every two bytes of memory, the last write and up
// to two reads or atomics. An access is reported if it conflicts with one of these, and no barrier, __syncwarp, or
// fence with an atomic orders the two. Blocks run one after another in the emulator, so only the stamps decide what
// "before" is.
#include "checker.h"

#include <pthread.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <set>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "emulation.h"

#define CHECKER_CALLER __builtin_extract_return_addr(__builtin_return_address(0))

namespace emulation {
namespace {

constexpr int kMaxThreads = 1024, kLanes = 32, kMaxClusterSize = 8, kMaxSlots = kMaxThreads * kMaxClusterSize;
constexpr size_t kCellsPerPage = 2048, kMaxPages = 4096, kMaxReports = 50;

// Who accessed a cell, and when: `epoch` counts the barriers of the block, `clock` the fences and __syncwarps of the
// thread, `arrivals` its arrivals at the barrier of the cluster. `thread` is counted over the cluster.
struct AccessStamp {
  uint32_t block;
  uint32_t site;
  uint32_t epoch, clock;
  uint16_t thread, arrivals;
  uint8_t bytes;  // mask of the cell's bytes
  bool atomic;
};
struct ShadowCell {
  AccessStamp write;
  AccessStamp others[2];  // reads and atomics
  uint32_t pending;       // the block that has a pending asynchronous copy to this cell
  uint8_t written;        // mask of the bytes that this block has written
};
struct ShadowPage {
  ShadowCell cells[kCellsPerPage];
};

struct VectorClock {
  uint32_t own;
  uint32_t seen[kLanes];  // for each lane of the warp, the clock up to which its accesses happened before
};
// The state of a thread at its last fence. An atomic after the fence publishes it to all threads that later update the
// same address.
struct Release {
  uint32_t block, epoch;  // block 0: no fence yet
  int thread;
  VectorClock clocks;
};
struct AtomicHistory {
  std::vector<Release> releases;  // blocks in ascending order
};
// A point in the execution of a thread of this cluster.
struct Point {
  uint32_t block, epoch, clock, arrivals;
  int thread;
};
// At this point, a thread has acquired the first `count` releases of an atomic.
struct Acquisition {
  Point point;
  const AtomicHistory* atomic;
  size_t count;
};
// The last access to the shared memory of a block by another block of its cluster, by the count of arrivals.
struct RemoteAccess {
  bool exists;
  uint32_t arrivals;
  const void* pc;
  int thread;
};

std::unordered_map<uintptr_t, ShadowPage*> pages;
uintptr_t last_number = 0;
ShadowPage* last_page = nullptr;
ShadowCell* shared_cells = nullptr;
VectorClock clocks[kMaxSlots];
Release fences[kMaxSlots];
uint32_t epochs[kMaxClusterSize];
uint16_t arrivals[kMaxSlots], waits[kMaxSlots];  // at the barrier of the cluster
RemoteAccess remote_accesses[kMaxClusterSize];
std::vector<Point> launch_waits;  // waits for the previous launch
std::unordered_map<uintptr_t, AtomicHistory> atomics;
std::vector<Acquisition> acquisitions;

struct Finding {
  const char* kind;
  bool shared;
  const void *pc, *other_pc;
  std::string thread, other_thread;
};
std::vector<Finding> findings;
std::set<std::tuple<const char*, const void*, const void*>> reported;
std::vector<AccessRecord> trace;
std::vector<const void*> sites;  // a stamp holds a site number, because an address is too large
std::unordered_map<const void*, uint32_t> site_numbers;

uint32_t site_number(const void* pc) {
  static const void* last_pc = nullptr;
  static uint32_t last = 0;
  if (pc == last_pc && !sites.empty()) return last;
  const auto [found, is_new] = site_numbers.try_emplace(pc, uint32_t(sites.size()));
  if (is_new) sites.push_back(pc);
  last_pc = pc;
  return last = found->second;
}

bool is_shared(const char* p) { return p >= execution.shared && p < execution.shared_end; }

ShadowCell& cell_of(const char* p) {
  if (is_shared(p)) return shared_cells[size_t(p - execution.shared) / 2];
  const uintptr_t cell = reinterpret_cast<uintptr_t>(p) / 2, number = cell / kCellsPerPage;
  if (number != last_number || last_page == nullptr) {
    ShadowPage*& page = pages[number];
    if (page == nullptr) page = static_cast<ShadowPage*>(std::calloc(1, sizeof(ShadowPage)));
    last_number = number, last_page = page;
  }
  return last_page->cells[cell % kCellsPerPage];
}

bool same_warp(int a, int b) { return a / kLanes == b / kLanes; }

uint32_t& current_epoch() { return epochs[execution.rank]; }
Point current_point() {
  const int thread = execution.thread;
  return {execution.block, current_epoch(), clocks[thread].own, arrivals[thread], thread};
}

// Whether a point happened before `thread`'s current position by way of barriers.
bool is_before(const Point& p, int thread) {
  if (p.thread == thread || p.arrivals < waits[thread]) return true;
  if (p.block != execution.block) return false;
  return p.epoch < current_epoch() ||
         (same_warp(p.thread, thread) && p.clock <= clocks[thread].seen[p.thread % kLanes]);
}

// The first block of the cluster that a block of this launch belongs to.
uint32_t cluster_of(uint32_t block) {
  return block - (block - execution.first_block) % execution.cluster_size;
}

// Whether s happened before `thread`'s current position by way of fences and atomics.
bool is_acquired(const AccessStamp& s, int thread) {
  for (const Acquisition& a : acquisitions) {
    if (!is_before(a.point, thread)) continue;
    // The releases are in the order of the clusters; those of the blocks of a cluster are mixed.
    const auto begin = a.atomic->releases.begin(), end = begin + ptrdiff_t(a.count);
    const uint32_t cluster = cluster_of(s.block);
    auto r = std::lower_bound(begin, end, cluster, [](const Release& r, uint32_t block) { return r.block < block; });
    for (; r != end && r->block < cluster + execution.cluster_size; ++r) {
      if (r->block != s.block) continue;
      if (s.epoch < r->epoch) return true;
      if (s.epoch == r->epoch && same_warp(s.thread, r->thread) && s.clock <= r->clocks.seen[s.thread % kLanes])
        return true;
    }
  }
  return false;
}

// Whether `thread` knows that the launches before this one have ended.
bool has_waited(int thread) {
  return std::any_of(launch_waits.begin(), launch_waits.end(), [&](const Point& p) { return is_before(p, thread); });
}

bool happens_before(const AccessStamp& s, int thread, bool shared) {
  if (s.block < execution.first_block) return shared || s.block < execution.overlap_block || has_waited(thread);
  if (s.block < execution.cluster_block) return shared || is_acquired(s, thread);
  return is_before({s.block, s.epoch, s.clock, s.arrivals, s.thread}, thread) || is_acquired(s, thread);
}

void report(const char* kind, bool shared, const void* pc, int thread, const AccessStamp* other) {
  const void* other_pc = other ? sites[other->site] : nullptr;
  if (findings.size() >= kMaxReports || !reported.emplace(kind, pc, other_pc).second) return;
  std::string name;
  if (other) {
    name = thread_name(other->thread);
    if (other->block < execution.cluster_block)
      name = (other->block < execution.first_block ? "the previous launch, " : "another block, ") +
             name.substr(name.find("thread"));
  }
  findings.push_back({kind, shared, pc, other_pc, thread_name(thread), name});
}

// Atomics on one address are ordered; together with fences they also order other accesses.
void release_and_acquire(const void* p, int thread) {
  const bool fenced = fences[thread].block == execution.block;
  if (!fenced && atomics.empty()) return;
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (const auto found = atomics.find(address); found != atomics.end())
    acquisitions.push_back({current_point(), &found->second, found->second.releases.size()});
  if (fenced) atomics[address].releases.push_back(fences[thread]);
}

// Checks and records an access to bytes of one cell; returns whether it is correct.
bool access_cell(ShadowCell& cell, uint8_t bytes, Access how, bool shared, const AccessStamp& me, const void* pc) {
  const int thread = me.thread;
  const bool writes = how != Access::kRead, reads = how != Access::kWrite;
  auto conflicts = [&](const AccessStamp& s) {
    return s.block != 0 && (s.bytes & bytes) && !(me.atomic && s.atomic) && !happens_before(s, thread, shared);
  };
  if (cell.pending >= execution.cluster_block) {
    report("touches the destination of a pending asynchronous copy", shared, pc, thread, nullptr);
    return false;
  }
  if (shared && cell.write.block < execution.cluster_block) cell.written = 0;
  const char* race = nullptr;
  const AccessStamp* other = nullptr;
  if (shared && reads && (cell.written & bytes) != bytes)
    race = "read of uninitialised memory";
  else if (conflicts(cell.write))
    race = writes ? "race (write after write)" : "race (read after write)", other = &cell.write;
  for (const AccessStamp& s : cell.others) {
    if (race || !(writes || s.atomic) || !conflicts(s)) continue;
    race = !writes ? "race (read after write)" : s.atomic ? "race (write after write)" : "race (write after read)";
    other = &s;
  }
  if (other && other->block < execution.first_block)
    race = writes ? "write before the wait for the previous launch" : "read before the wait for the previous launch";
  if (race) report(race, shared, pc, thread, other);

  if (how == Access::kWrite) {
    cell.write = me;
    cell.written |= bytes;
  } else if (happens_before(cell.others[0], thread, shared)) {
    cell.others[0] = me;
  } else if (happens_before(cell.others[1], thread, shared)) {
    cell.others[1] = me;
  }
  return race == nullptr;
}

// Checks an access to the shared memory of another block of the cluster: that block must have started and must not exit.
void check_remote(const char* p, const void* pc, int thread) {
  const int rank = rank_of(p);
  if (waits[thread] == 0)
    report("access to another block before a cluster barrier, when it may not have started", true, pc, thread, nullptr);
  if (has_exited(rank)) report("access to another block that may have exited", true, pc, thread, nullptr);
  RemoteAccess& last = remote_accesses[rank];
  if (!last.exists || last.arrivals <= arrivals[thread]) last = {true, arrivals[thread], pc, thread};
}

bool is_within(const char* p, const void* begin, const void* end) { return p >= begin && p < end; }

// Whether p is on the stack of the calling OS thread, where the host code keeps the arguments of the kernel.
bool is_argument(const char* p) {
  static thread_local char *begin = nullptr, *end = nullptr;
  if (end == nullptr) {
    pthread_attr_t attributes;
    void* stack = nullptr;
    size_t bytes = 0;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
      pthread_attr_getstack(&attributes, &stack, &bytes);
      pthread_attr_destroy(&attributes);
    }
    begin = static_cast<char*>(stack), end = begin + bytes;
  }
  return is_within(p, begin, end);
}

}  // namespace

namespace checker {

void start_launch() {
  if (shared_cells == nullptr)  // calloc gives memory that is allocated when it is used
    shared_cells = static_cast<ShadowCell*>(
        std::calloc(size_t(execution.shared_end - execution.shared) / 2 + 1, sizeof(ShadowCell)));
  atomics.clear();
  if (pages.size() <= kMaxPages) return;
  for (auto& page : pages) std::free(page.second);
  pages.clear();
  last_page = nullptr;
}

void start_cluster() {
  acquisitions.clear(), launch_waits.clear();
  std::memset(epochs, 0, sizeof epochs), std::memset(remote_accesses, 0, sizeof remote_accesses);
  const size_t count = size_t(execution.cluster_size) * size_t(execution.block_slots);
  std::memset(arrivals, 0, count * sizeof arrivals[0]), std::memset(waits, 0, count * sizeof waits[0]);
  std::memset(clocks, 0, count * sizeof clocks[0]);
  for (size_t i = 0; i < count; ++i) clocks[i].own = 1;
}

void access(const void* pointer, size_t bytes, Access how, const void* pc, int thread) {
  const char* p = static_cast<const char*>(pointer);
  if (execution.thread < 0 || is_within(p, execution.stacks, execution.stacks_end) ||
      is_within(p, &indices, &indices + 1))
    return;
  const bool shared = is_shared(p);
  if (shared && !in_shared_array(p, bytes)) return report("access outside the arrays", shared, pc, thread, nullptr);
  if (shared && rank_of(p) != execution.rank) check_remote(p, pc, thread);
  const bool atomic = how == Access::kAtomic;
  if (settings.traced && !is_argument(p))
    trace.push_back({reinterpret_cast<uintptr_t>(p), execution.block, site_number(pc), uint32_t(bytes),
                     uint16_t(thread % execution.block_slots), uint8_t(how), shared});
  const AccessStamp stamp{execution.block,      site_number(pc), current_epoch(), clocks[thread].own,
                          uint16_t(thread), arrivals[thread], 3, atomic};
  if (atomic) release_and_acquire(p, thread);
  const char* end = p + bytes;
  while (p < end) {
    const bool odd = reinterpret_cast<uintptr_t>(p) & 1;
    const uint8_t part = odd ? 2 : end - p >= 2 ? 3 : 1;
    AccessStamp me = stamp;
    me.bytes = part;
    if (!access_cell(cell_of(p), part, how, shared, me, pc)) break;  // one report per access
    p += part == 3 ? 2 : 1;
  }
  for (; p < end; ++p)  // the rest of a reported write still counts as written
    if (how == Access::kWrite && shared) {
      ShadowCell& cell = cell_of(p);
      if (cell.write.block < execution.cluster_block) cell.written = 0;
      cell.write = stamp, cell.written |= reinterpret_cast<uintptr_t>(p) & 1 ? 2 : 1;
    }
}

void set_pending(const void* pointer, size_t bytes, bool pending) {
  const char* p = static_cast<const char*>(pointer);
  for (size_t i = 0; i < bytes; i += 2) cell_of(p + i).pending = pending ? execution.block : 0;
}

void order_block() { ++current_epoch(); }

void order_warp(int warp, uint32_t lanes) {
  VectorClock* all = clocks + warp * kLanes;
  uint32_t joined[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((lanes >> lane & 1) == 0) continue;
    all[lane].seen[lane] = all[lane].own++;
    for (int i = 0; i < kLanes; ++i) joined[i] = max(joined[i], all[lane].seen[i]);
  }
  for (int lane = 0; lane < kLanes; ++lane)
    if (lanes >> lane & 1) std::memcpy(all[lane].seen, joined, sizeof joined);
}

void fence() {
  VectorClock& mine = clocks[execution.thread];
  mine.seen[execution.thread % kLanes] = mine.own++;
  fences[execution.thread] = {execution.block, current_epoch(), execution.thread, mine};
}

void cluster_arrive() { ++arrivals[execution.thread]; }
void cluster_wait() { ++waits[execution.thread]; }

void exit_block() {
  const RemoteAccess& last = remote_accesses[execution.rank];
  if (last.exists && last.arrivals >= waits[execution.thread])
    report("access to another block that may have exited", true, last.pc, last.thread, nullptr);
}

void wait_for_previous_launch() { launch_waits.push_back(current_point()); }

}  // namespace checker

std::vector<RaceReport> reports() {
  std::vector<RaceReport> all;
  for (const Finding& f : findings)
    all.push_back({f.kind, f.shared ? "shared" : "global", source_of(f.pc), f.thread,
                   f.other_pc ? source_of(f.other_pc) : "", f.other_thread});
  return all;
}

void clear_reports() { findings.clear(), reported.clear(); }

std::vector<AccessRecord> take_trace() { return std::exchange(trace, {}); }

std::string source_of_site(uint32_t site) { return site < sites.size() ? source_of(sites[site]) : "?"; }

}  // namespace emulation

// --- hooks that -fsanitize=thread calls ------------------------------------------------------------------------------

using emulation::Access;
static void record_access(const void* p, size_t bytes, Access how, const void* pc) {
  emulation::checker::access(p, bytes, how, pc, emulation::execution.thread);
}

#define CHECKER_HOOK(name, bytes, how) \
  void __tsan_##name(void* p) { record_access(p, bytes, Access::how, CHECKER_CALLER); }
#define CHECKER_HOOKS(bytes)                      \
  CHECKER_HOOK(read##bytes, bytes, kRead)         \
  CHECKER_HOOK(write##bytes, bytes, kWrite)       \
  CHECKER_HOOK(unaligned_read##bytes, bytes, kRead) \
  CHECKER_HOOK(unaligned_write##bytes, bytes, kWrite) \
  CHECKER_HOOK(volatile_read##bytes, bytes, kRead) \
  CHECKER_HOOK(volatile_write##bytes, bytes, kWrite)

// Only host code contains these atomic operations: kernels use atomicAdd etc. of emulation.h.
#define CHECKER_UPDATE(bits, name, builtin) \
  uint##bits##_t __tsan_atomic##bits##_##name(volatile uint##bits##_t* p, uint##bits##_t v, int) { return builtin; }
#define CHECKER_EXCHANGE(bits, name)                                                                                \
  int __tsan_atomic##bits##_compare_exchange_##name(                                                                \
      volatile uint##bits##_t* p, uint##bits##_t* expected, uint##bits##_t v, int, int) {                           \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                  \
  }
#define CHECKER_ATOMICS(bits)                                                                                       \
  uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* p, int) {                                \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                                    \
  }                                                                                                                 \
  void __tsan_atomic##bits##_store(volatile uint##bits##_t* p, uint##bits##_t v, int) {                             \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                                       \
  }                                                                                                                 \
  CHECKER_UPDATE(bits, exchange, __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST))                                       \
  CHECKER_UPDATE(bits, fetch_add, __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST))                                       \
  CHECKER_UPDATE(bits, fetch_sub, __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST))                                       \
  CHECKER_UPDATE(bits, fetch_and, __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST))                                       \
  CHECKER_UPDATE(bits, fetch_or, __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST))                                         \
  CHECKER_EXCHANGE(bits, strong)                                                                                    \
  CHECKER_EXCHANGE(bits, weak)

extern "C" {
CHECKER_HOOKS(1)
CHECKER_HOOKS(2)
CHECKER_HOOKS(4)
CHECKER_HOOKS(8)
CHECKER_HOOKS(16)
void __tsan_read_range(void* p, size_t bytes) { record_access(p, bytes, Access::kRead, CHECKER_CALLER); }
void __tsan_write_range(void* p, size_t bytes) { record_access(p, bytes, Access::kWrite, CHECKER_CALLER); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
CHECKER_ATOMICS(8)
CHECKER_ATOMICS(16)
CHECKER_ATOMICS(32)
CHECKER_ATOMICS(64)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}
}
