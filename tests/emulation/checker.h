// The happens-before checker of tests/emulation: which accesses of a kernel to memory no barrier puts in order. It is
// there in the mode "check" alone, where the compiler announces every access (-fsanitize=thread without libtsan).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace emulation {

enum class Access { kRead, kWrite, kAtomic };

// What the scheduler tells the checker.
struct Progress {
  int thread = -1;               // that runs now; -1 outside kernels
  uint32_t block = 0;            // number of the block that runs, counted over all launches; memory is stamped with it
  uint32_t first_block = 1;      // of this launch
  const char* shared = nullptr;  // the arena of shared memory
  const char* shared_end = nullptr;
  const char* stacks = nullptr;  // of the fibers: memory of one thread alone
  const char* stacks_end = nullptr;
};
extern Progress progress;

bool in_shared_array(const void* p, size_t bytes);
// "file.cu:12 < file.cu:34": the source line of a call that returns to pc, and those it is inlined at.
std::string source_of(const void* pc);
std::string thread_name(int thread);  // "block (0,0,0) thread (1,0,0)"
// One line for each report; none outside the mode "check".
std::string take_reports();

#if defined(EMULATION_CHECKED)
namespace checker {
void start_launch();
void start_block();
void access(const void* p, size_t bytes, Access how, const void* pc, int thread);
void set_pending(const void* p, size_t bytes, bool pending);  // the destination of an asynchronous copy
void order_block();                                           // all threads of the block have met
void order_warp(int warp, uint32_t lanes);                    // these lanes of it have met, memory included
void fence();
}  // namespace checker
#else
namespace checker {
inline void start_launch() {}
inline void start_block() {}
inline void access(const void*, size_t, Access, const void*, int) {}
inline void set_pending(const void*, size_t, bool) {}
inline void order_block() {}
inline void order_warp(int, uint32_t) {}
inline void fence() {}
}  // namespace checker
#endif

}  // namespace emulation
