// The memory of the values of a running program. Most values of a network are needed for a few instructions only, so
// that they can share little memory, which then stays in the cache. A call of run_program borrows an arena and gives it
// back, so that the next call uses the same memory.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <list>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../common/tensor.h"

#if defined(__SANITIZE_ADDRESS__)
#define DANET_HAS_ADDRESS_SANITIZER 1
#elif defined(__has_feature)  // clang
#if __has_feature(address_sanitizer)
#define DANET_HAS_ADDRESS_SANITIZER 1
#endif
#endif

namespace danet {

// Memory in which blocks are allocated and freed in any order, by one thread at a time. Each block gets the lowest
// address at which it fits, so that the blocks stay close together.
//
// The arena does not know in advance how much memory a program needs. It assigns an offset to every block. If the block
// ends behind the region that the arena has, the block gets memory of its own. At the end of the program, the arena
// replaces the region by one for all offsets: the next call of the same program finds room for all of its blocks.
class Arena {
 private:
  struct Entry {
    int64_t offset, size;
    char* memory;
    bool is_in_region;
    int64_t owners;
  };
  using Entries = std::list<Entry>;

 public:
  // Shared ownership of a block. Its memory is free when the last owner is destroyed.
  class Block {
   public:
    Block() = default;
    Block(const Block& other) : arena_(other.arena_), entry_(other.entry_) {
      if (arena_ != nullptr) ++entry_->owners;
    }
    Block(Block&& other) noexcept : arena_(std::exchange(other.arena_, nullptr)), entry_(other.entry_) {}
    Block& operator=(Block other) noexcept {
      std::swap(arena_, other.arena_);
      std::swap(entry_, other.entry_);
      return *this;
    }
    ~Block() {
      if (arena_ != nullptr && --entry_->owners == 0) arena_->free(entry_);
    }
    char* get() const { return entry_->memory; }

   private:
    friend class Arena;
    Block(Arena* arena, Entries::iterator entry) : arena_(arena), entry_(entry) {}
    Arena* arena_ = nullptr;
    Entries::iterator entry_{};
  };

  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { release_region(); }

  // Uninitialized memory, aligned to a cache line.
  Block allocate(int64_t bytes) {
    DANET_CHECK(
        bytes <= kMaxBlockBytes, "run_program: a value needs ", bytes, " bytes, which is too much; use smaller images");
    const int64_t size = (std::max<int64_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
    // Find the first gap that is large enough.
    int64_t offset = 0;
    auto next = entries_.begin();
    for (; next != entries_.end() && next->offset - offset < size; ++next) offset = next->offset + next->size;
    const bool is_in_region = offset + size <= region_bytes_;
    const auto entry =
        entries_.insert(next, Entry{offset, size, is_in_region ? region_ + offset : nullptr, is_in_region, 1});
    if (!is_in_region) {
      void* memory = nullptr;
      if (posix_memalign(&memory, kAlignment, size_t(size)) != 0) {
        entries_.erase(entry);
        DANET_CHECK(false, "run_program: there is not enough memory for ", bytes, " bytes");
      }
      entry->memory = static_cast<char*>(memory);
    }
    needed_bytes_ = std::max(needed_bytes_, offset + size);
    return Block(this, entry);
  }

  // Ends a program, all of whose blocks have been freed: adapts the region to the memory that the program needed. The
  // region grows at once. It shrinks after kSmallPrograms programs that needed at most half of it.
  void finish_program() {
    const int64_t needed = std::min((needed_bytes_ + kHugePage - 1) / kHugePage * kHugePage, kMaxReusedBytes);
    needed_bytes_ = 0;
    largest_recent_ = std::max(largest_recent_, needed);
    if (needed > region_bytes_ || (needed <= region_bytes_ / 2 && ++small_programs_ == kSmallPrograms))
      replace_region(largest_recent_);
    else if (needed <= region_bytes_ / 2)
      return;
    small_programs_ = 0;
    largest_recent_ = 0;
  }

 private:
  static constexpr int64_t kAlignment = 64, kHugePage = 2 << 20, kMaxBlockBytes = int64_t(1) << 46;
  static constexpr int kSmallPrograms = 16;
  // With AddressSanitizer, every value has a block of its own, so that the sanitizer sees its end.
#if defined(DANET_HAS_ADDRESS_SANITIZER)
  static constexpr int64_t kMaxReusedBytes = 0;
#else
  static constexpr int64_t kMaxReusedBytes = 64 << 20;
#endif

  void free(Entries::iterator entry) {
    if (!entry->is_in_region) std::free(entry->memory);
    entries_.erase(entry);
  }

  void release_region() {
    if (region_ == nullptr) return;
#if defined(__linux__)
    munmap(region_, size_t(region_bytes_));
#else
    std::free(region_);
#endif
    region_ = nullptr;
    region_bytes_ = 0;
  }

  // Without enough memory, the arena has no region.
  void replace_region(int64_t bytes) {
    release_region();
    if (bytes == 0) return;
#if defined(__linux__)
    // Reserve a huge page more, and return what is not aligned to huge pages.
    void* const memory =
        mmap(nullptr, size_t(bytes + kHugePage), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, /*fd=*/-1, 0);
    if (memory == MAP_FAILED) return;
    char* const begin = static_cast<char*>(memory);
    const int64_t before = (kHugePage - int64_t(uintptr_t(begin) % kHugePage)) % kHugePage;
    if (before > 0) munmap(begin, size_t(before));
    munmap(begin + before + bytes, size_t(kHugePage - before));
    region_ = begin + before;
    // Huge pages save misses of the address translation. The kernel may be built without them.
    madvise(region_, size_t(bytes), MADV_HUGEPAGE);
#else
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, size_t(bytes)) != 0) return;
    region_ = static_cast<char*>(memory);
#endif
    region_bytes_ = bytes;
  }

  Entries entries_;  // the allocated blocks, ordered by their offsets
  char* region_ = nullptr;
  int64_t region_bytes_ = 0;
  int64_t needed_bytes_ = 0;  // the end of the last block of the current program
  // Since the last program that needed more than half of the region:
  int small_programs_ = 0;
  int64_t largest_recent_ = 0;
};

// Borrows an arena until the end of the scope. Between programs the process keeps at most kMaxArenas of them, of
// 64 MiB each: as many as programs have run at the same time. An arena that has just been used is borrowed again.
class BorrowedArena {
 public:
  BorrowedArena() {
    for (std::atomic<Arena*>& place : places())
      if ((arena_ = place.exchange(nullptr)) != nullptr) return;
    arena_ = new Arena;
  }
  ~BorrowedArena() {
    arena_->finish_program();
    for (std::atomic<Arena*>& place : places()) {
      Arena* expected = nullptr;
      if (place.compare_exchange_strong(expected, arena_)) return;
    }
    delete arena_;
  }
  BorrowedArena(const BorrowedArena&) = delete;
  BorrowedArena& operator=(const BorrowedArena&) = delete;
  Arena& get() const { return *arena_; }

 private:
  static constexpr size_t kMaxArenas = 8;
  // NOTE: there is no mutex, because a process may be forked while another thread holds it. The arenas are not
  // destroyed at the end of the process, when other threads may still run.
  static std::array<std::atomic<Arena*>, kMaxArenas>& places() {
    static std::array<std::atomic<Arena*>, kMaxArenas> idle{};
    return idle;
  }

  Arena* arena_;
};

}  // namespace danet
