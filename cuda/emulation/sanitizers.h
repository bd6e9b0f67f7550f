// What the address sanitizer and valgrind must be told about fibers and memory. Without them every
// function here is empty.
//
// Both tools follow one stack a thread. A fiber is a second stack on the same thread: unannounced,
// the address sanitizer takes its frames for wild writes and valgrind takes the jump for a stack
// that grew by megabytes. Valgrind's part needs its headers when this is compiled, not the program.
#pragma once

#include <cstddef>
#include <string>

#include "core/address_sanitizer.h"
#ifdef MUTILDE_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if __has_include(<valgrind/memcheck.h>)
#define MUTILDE_VALGRIND 1
#include <valgrind/memcheck.h>
#endif

namespace mutilde::emulation {

/// Before a jump to another stack. `saved` receives what finish_switch() needs once this stack runs
/// again.
inline void start_switch([[maybe_unused]] void** saved, [[maybe_unused]] const void* target,
                         [[maybe_unused]] size_t bytes) {
#ifdef MUTILDE_ASAN
  __sanitizer_start_switch_fiber(saved, target, bytes);
#endif
}

/// After the jump, on the new stack; reports the stack that was left. A fiber's first run has
/// nothing saved.
inline void finish_switch([[maybe_unused]] void* saved, [[maybe_unused]] const void** left,
                          [[maybe_unused]] size_t* left_bytes) {
#ifdef MUTILDE_ASAN
  __sanitizer_finish_switch_fiber(saved, left, left_bytes);
#endif
}

/// Announces a fiber's stack; returns a handle for forget_stack().
inline unsigned announce_stack([[maybe_unused]] char* begin, [[maybe_unused]] size_t bytes) {
#ifdef MUTILDE_VALGRIND
  return VALGRIND_STACK_REGISTER(begin, begin + bytes);
#else
  return 0;
#endif
}

/// A fiber may be dropped in the midst of a kernel: its frames' poison must not outlive the stack.
inline void forget_stack([[maybe_unused]] char* begin, [[maybe_unused]] size_t bytes,
                         [[maybe_unused]] unsigned handle) {
#ifdef MUTILDE_ASAN
  __asan_unpoison_memory_region(begin, bytes);
#endif
#ifdef MUTILDE_VALGRIND
  VALGRIND_STACK_DEREGISTER(handle);
#endif
}

/// When a sanitizer ends the program, it names the line; what `where` returns, if it is not empty,
/// is printed too.
void report_on_death(std::string (*where)());

/// The bytes count as never written, whatever they hold.
inline void mark_uninitialised([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#ifdef MUTILDE_VALGRIND
  VALGRIND_MAKE_MEM_UNDEFINED(data, bytes);
#endif
}

}  // namespace mutilde::emulation
