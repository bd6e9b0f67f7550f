#include "cuda/emulation/fiber.h"

#include <cstdlib>

#include <boost/context/detail/fcontext.hpp>
#include <sys/mman.h>
#include <unistd.h>

#include "core/error.h"
#include "cuda/emulation/sanitizers.h"

namespace mutilde::emulation {
namespace {

// Boost.Context's lowest layer: two functions of assembly, which save and load the registers that a
// call preserves. Its class `fiber` adds unwinding on destruction, which ~Fiber() says we must not
// have, and no place for the sanitizer's notes.
using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

// Mapped, not yet used pages cost nothing: a stack is as large as a kernel may ever need. The
// address sanitizer puts a red zone around every local array.
constexpr size_t kStackBytes = kAsan ? 256 * 1024 : 128 * 1024;

size_t page_bytes() {
  static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

/// The first frame on a fiber's stack.
struct Fiber::Entry {
  static void run(transfer_t from) {
    auto* fiber = static_cast<Fiber*>(from.data);
    finish_switch(nullptr, &fiber->caller_stack_, &fiber->caller_stack_bytes_);
    fiber->caller_ = from.fctx;
    fiber->body_(fiber->argument_);
    std::abort();  // there is nothing to return to
  }
};

Fiber::Fiber(void (*body)(void*), void* argument) : body_(body), argument_(argument) {
  void* mapping = mmap(nullptr, page_bytes() + kStackBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    fail<Error>("emulation: no memory for a thread's stack (fewer host threads need fewer)");
  }
  mapping_ = static_cast<char*>(mapping);
  // Stacks grow down. Where the guard page is refused (a process may have some 65,000 mappings), a
  // stack without one still works.
  static_cast<void>(mprotect(mapping_, page_bytes(), PROT_NONE));
  char* stack = mapping_ + page_bytes();
  stack_handle_ = announce_stack(stack, kStackBytes);
  context_ = make_fcontext(stack + kStackBytes, kStackBytes, &Entry::run);
}

Fiber::~Fiber() {
  forget_stack(mapping_ + page_bytes(), kStackBytes, stack_handle_);
  munmap(mapping_, page_bytes() + kStackBytes);
}

void Fiber::resume() {
  void* saved = nullptr;
  start_switch(&saved, mapping_ + page_bytes(), kStackBytes);
  context_ = jump_fcontext(context_, this).fctx;
  finish_switch(saved, nullptr, nullptr);
}

void Fiber::yield() {
  void* saved = nullptr;
  start_switch(&saved, caller_stack_, caller_stack_bytes_);
  caller_ = jump_fcontext(caller_, nullptr).fctx;
  finish_switch(saved, &caller_stack_, &caller_stack_bytes_);
}

}  // namespace mutilde::emulation
