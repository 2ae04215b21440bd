// The happens-before checker: reports memory accesses of a kernel that no barrier or fence orders. It exists in mode
// "check" only, where -fsanitize=thread makes the compiler call a hook before every access.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emulation {

enum class Access { kRead, kWrite, kAtomic };

// The state of the scheduler, which the checker reads.
struct ExecutionState {
  int thread = -1;               // the running thread, counted over the blocks of its cluster; -1 outside kernels
  int rank = 0;                  // the number of the running block in its cluster
  int block_slots = 0;           // the numbers of threads between successive blocks of a cluster
  uint32_t block = 0;            // the running block, counted over all launches; accesses are stamped with it
  uint32_t cluster_block = 1;    // the first block of this cluster
  uint32_t cluster_size = 1;     // blocks of a cluster; 1 without clusters
  uint32_t first_block = 1;      // the first block of this launch
  uint32_t overlap_block = 1;    // the first block of earlier launches that may still run; else first_block
  const char* shared = nullptr;  // the arenas of shared memory, one for each block of a cluster
  size_t arena_bytes = 0;
  const char* shared_end = nullptr;
  const char* stacks = nullptr;  // the stacks of the fibers: memory that only one thread accesses
  const char* stacks_end = nullptr;
};
extern ExecutionState execution;

// The number in the cluster of the block that an address in shared memory belongs to.
inline int rank_of(const void* shared) {
  return int(size_t(static_cast<const char*>(shared) - execution.shared) / execution.arena_bytes);
}
bool in_shared_array(const void* p, size_t bytes);
bool has_exited(int rank);
// "file.cu:12 < file.cu:34": the source line of the call that returns to pc, and the lines that it is inlined at.
std::string source_of(const void* pc);
std::string thread_name(int thread);  // "block (0,0,0) thread (1,0,0)"

// A finding of the checker: what is wrong, the source lines and threads of the access, and of the access that it
// conflicts with, if any.
struct RaceReport {
  std::string kind, memory, source, thread, other_source, other_thread;

  std::string text() const;
};
// The reports since the last clear_reports(); empty outside mode "check".
std::vector<RaceReport> reports();
void clear_reports();

// A memory access of a kernel, other than to its arguments. The site is the number of its source line, see source_of_site.
struct AccessRecord {
  uint64_t address;
  uint32_t block, site, bytes;  // block: counted over all launches
  uint16_t thread;              // number in the block
  uint8_t kind;                 // Access
  bool shared;                  // whether the address is in shared memory
};
// The accesses since the last call, in the order of execution; empty unless settings.traced, in mode "check".
std::vector<AccessRecord> take_trace();
std::string source_of_site(uint32_t site);

#if defined(EMULATION_CHECKED)
constexpr bool kIsChecked = true;
#else
constexpr bool kIsChecked = false;
#endif

#if defined(EMULATION_CHECKED)
namespace checker {
void start_launch();
void start_cluster();
void access(const void* p, size_t bytes, Access how, const void* pc, int thread);
void set_pending(const void* p, size_t bytes, bool pending);  // p: the destination of an asynchronous copy
void order_block();                                           // after a barrier of the block
void order_warp(int warp, uint32_t lanes);                    // after a __syncwarp of these lanes
void fence();
void cluster_arrive();
void cluster_wait();
void exit_block();                // after the last thread of the block, which is current
void wait_for_previous_launch();
}  // namespace checker
#else
namespace checker {
inline void start_launch() {}
inline void start_cluster() {}
inline void access(const void*, size_t, Access, const void*, int) {}
inline void set_pending(const void*, size_t, bool) {}
inline void order_block() {}
inline void order_warp(int, uint32_t) {}
inline void fence() {}
inline void cluster_arrive() {}
inline void cluster_wait() {}
inline void exit_block() {}
inline void wait_for_previous_launch() {}
}  // namespace checker
#endif

}  // namespace emulation
