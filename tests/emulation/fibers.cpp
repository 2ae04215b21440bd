// The fibers of the emulator, one for each thread that runs or waits, and the switches between them.
#include <sys/mman.h>

#include "scheduler.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
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
#endif

namespace emulation {
namespace scheduler {

uint64_t random_state = 0;
void (*kernel_body)(void*);
void* kernel_argument;
Thread threads[kMaxSlots];
ReadyQueue ready;
std::string failure;
const void* failure_pc;

namespace {

Fiber fibers[kMaxSlots], main_fiber;
Fiber *running = &main_fiber, *previous = nullptr;
int fiber_count = 0;
Fiber* idle[kMaxSlots];
int idle_count = 0;

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

void make_current(int thread) {
  execution.thread = thread;
  indices.thread = threads[thread].index;
  if (execution.cluster_size == 1) return;
  execution.rank = thread / execution.block_slots;
  execution.block = execution.cluster_block + uint32_t(execution.rank);
  indices.block = blocks[execution.rank].index;
}

void prepare(Fiber& fiber);

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

}  // namespace

uint64_t random_number() {  // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

void fail(const std::string& text, const void* pc) {
  if (execution.thread < 0) throw std::runtime_error("emulation: outside a kernel: " + text);
  failure = text + " (" + thread_name(execution.thread) + ")";
  failure_pc = pc;
  switch_to(&main_fiber);
  __builtin_unreachable();
}

int next_ready() {
  if (ready.count == 0) return -1;
  if (is_random()) std::swap(ready.at(unsigned(random_number() % ready.count)), ready.at(0));
  const int thread = ready.at(0);
  ready.first = (ready.first + 1) % kMaxSlots, --ready.count;
  return thread;
}

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

void yield_to_others() {
  const int self = execution.thread;
  resume(next_ready());
  make_current(self);
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

}  // namespace scheduler
}  // namespace emulation
