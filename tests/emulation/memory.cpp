// Shared memory, the asynchronous copies to it, and atomics.
#include "scheduler.h"

namespace emulation {
namespace scheduler {

char* arena = nullptr;
size_t arena_used, shared_used, dynamic_bytes;
std::vector<SharedArray> shared_arrays;

}  // namespace scheduler

using namespace scheduler;

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

bool scheduler::in_own_array(const void* p, size_t bytes) {
  return in_shared_array(p, bytes) && rank_of(p) == execution.rank;
}

namespace {
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
  if (emulation::execution.thread >= 0) emulation::scheduler::fail(what, EMULATION_CALLER);
  std::fprintf(stderr, "%s\n", what.c_str());
  std::abort();
}
