// SPDX-License-Identifier: Apache-2.0
// Stacks and switching between them. x86-64 by hand, as swapcontext asks the kernel for signal masks at every switch
// (300 ns against 5); ucontext elsewhere.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>
#include <utility>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(EMULATOR_UNDER_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

class Fiber {
 public:
  static constexpr int64_t kStack = 128 * 1024;

  Fiber() = default;  // the calling thread's own
  explicit Fiber(void (*entry)()) : entry_(entry) {
    page_ = sysconf(_SC_PAGESIZE);
    void* p = mmap(nullptr, static_cast<size_t>(kStack + page_), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    stack_ = static_cast<char*>(p) + page_;
    mprotect(p, static_cast<size_t>(page_), PROT_NONE);
  }
  Fiber(const Fiber&) = delete;
  ~Fiber() {
    if (stack_) munmap(stack_ - page_, static_cast<size_t>(kStack + page_));
  }

  const char* stack() const { return stack_; }

  // Makes the next switch to it begin `entry` anew, which never returns.
  void reset() {
#if defined(EMULATOR_UNDER_ASAN)
    __asan_unpoison_memory_region(stack_, kStack);
#endif
#if defined(__x86_64__)
    uintptr_t* top = reinterpret_cast<uintptr_t*>(stack_ + kStack);
    *--top = 0;  // a return address that ends a back trace; leaves rsp 16 n + 8 at entry, as after a call
    *--top = reinterpret_cast<uintptr_t>(&begin);
    for (int i = 0; i < 6; ++i) *--top = 0;  // rbp rbx r12 r13 r14 r15
    top_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStack;
    context_.uc_link = nullptr;
    makecontext(&context_, &begin, 0);
#endif
  }

  // Leaves `from`, which runs, for `to`.
  static void change(Fiber& from, Fiber& to) {
    started() = &to;
#if defined(EMULATOR_UNDER_ASAN)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, to.stack_ ? to.stack_ : caller().first, to.stack_ ? kStack : caller().second);
#endif
#if defined(__x86_64__)
    swap(&from.top_, to.top_);
#else
    swapcontext(&from.context_, &to.context_);
#endif
#if defined(EMULATOR_UNDER_ASAN)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

 private:
  static Fiber*& started() {
    static Fiber* fiber;
    return fiber;
  }
  static void begin() {
#if defined(EMULATOR_UNDER_ASAN)
    __sanitizer_finish_switch_fiber(nullptr, &caller().first, &caller().second);
#endif
    started()->entry_();
    __builtin_trap();
  }
#if defined(__x86_64__)
  __attribute__((naked, noinline)) static void swap(uintptr_t** /*rdi: save*/, uintptr_t* /*rsi: load*/) {
    asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
        "movq %rsp, (%rdi); movq %rsi, %rsp\n"
        "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
  }
  uintptr_t* top_ = nullptr;
#else
  ucontext_t context_;
#endif
#if defined(EMULATOR_UNDER_ASAN)
  static std::pair<const void*, size_t>& caller() {  // the stack that fibers are begun from
    static std::pair<const void*, size_t> bounds;
    return bounds;
  }
#endif
  void (*entry_)() = nullptr;
  char* stack_ = nullptr;
  int64_t page_ = 0;
};

}  // namespace emulator
