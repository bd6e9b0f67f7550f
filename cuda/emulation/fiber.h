// A fiber: a function with a stack of its own that can stop in its midst and go on later, all on
// one host thread. A CUDA thread that waits for others is a fiber that has stopped.
#pragma once

#include <cstddef>

namespace mutilde::emulation {

class Fiber {
 public:
  /// body(argument) begins at the first resume(). It must not return and must not throw.
  Fiber(void (*body)(void*), void* argument);
  /// Drops the stack without unwinding it. Kernels own nothing that a destructor would have to
  /// free, and a fault leaves other threads of the block stopped for ever.
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Runs the body until its next yield().
  void resume();
  /// From the body: goes back to the resume() that runs it.
  void yield();

 private:
  struct Entry;

  void (*body_)(void*);
  void* argument_;
  char* mapping_ =
      nullptr;  // a guard page, then the stack: running over it is a segmentation fault
  unsigned stack_handle_ = 0;
  void* context_ = nullptr;  // where the body stopped
  void* caller_ = nullptr;   // where resume() was called
  const void* caller_stack_ = nullptr;
  size_t caller_stack_bytes_ = 0;
};

}  // namespace mutilde::emulation
