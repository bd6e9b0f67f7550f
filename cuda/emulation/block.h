// Runs the threads of one block, on one host thread.
//
// Threads take turns: each runs until it returns or has to wait for others, at a barrier of the
// block or in a call that the lanes of a warp make together. Nothing else stops a thread, so a
// kernel that never waits is a plain loop over its threads, and costs one. A thread that waits
// keeps its stack: it is a fiber, and the next thread starts on another one.
//
//   run():       every warp runs until all its lanes have returned or wait at a barrier;
//                threads that wait for a condition that has come true go on;
//                if every thread of the block waits at the same barrier, all go on; repeat.
//   run_warp():  every lane runs until it returns or waits;
//                warp calls whose lanes have all come are completed and their lanes go on; repeat.
//
// Where nobody can go on and not all have returned, there is a fault, and it is known who waits for
// whom.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "cuda/emulation/fault.h"
#include "cuda/emulation/fiber.h"
#include "cuda/emulation/grid.h"
#include "cuda/emulation/vector_types.h"

namespace mutilde::emulation {

inline constexpr int kWarpSize = 32;

/// Which lanes a call of a warp waits for.
enum class Lanes : uint8_t {
  kNamed,       // each that the mask names
  kNamedAlive,  // those of them that the block has and that have not returned, as hardware does
  kWhoComes     // those that come to this line before the warp runs out of other things to do
};

/// Something that the lanes of a warp do together: a shuffle, a vote, a matrix product.
struct WarpCall {
  const char* name;
  Lanes lanes;
  /// Runs once, when all have come. payload[i] is what lane i gave; `come` says which i there are.
  void (*complete)(unsigned come, void* const* payload);
};

class Block {
 public:
  /// Runs all threads of the block with this index. Throws KernelFault.
  void run(const Launch& launch, uint3 index);

  /// The block whose kernel is running on this host thread; null outside of kernels.
  static Block* running();

  // For the thread that is running.
  void wait_at_barrier(CallSite site);
  /// Waits until the others have made the same call with the same mask.
  void wait_in_warp(const WarpCall& call, unsigned mask, void* payload, CallSite site);
  /// Waits until ready(about, argument) is true. `call` is what it is called in messages.
  void wait_until(bool (*ready)(const void*, unsigned), const void* about, unsigned argument,
                  const char* call, CallSite site);
  void* dynamic_shared_memory() { return shared_.get(); }
  size_t dynamic_shared_bytes() const { return launch_->shared_bytes; }
  std::string where() const;  // "reduce: block (0,0,0), thread (3,0,0)"
  /// Which of the blocks that this object has run it is, from 1.
  int64_t number() const { return number_; }

 private:
  enum class State : uint8_t { kNotStarted, kReady, kAtBarrier, kInWarpCall, kUntil, kReturned };

  struct Thread {
    State state = State::kNotStarted;
    Fiber* fiber = nullptr;  // its stack, from start to return
    // What it waits for.
    CallSite site;
    const WarpCall* call = nullptr;
    unsigned mask = 0;
    void* payload = nullptr;
    bool (*ready)(const void*, unsigned) = nullptr;
    const void* about = nullptr;
    unsigned argument = 0;
    const char* condition = "";
  };

  struct Free {
    void operator()(void* data) const;
  };

  void run_threads();
  void run_warp(int first);
  bool complete_warp_calls();
  unsigned same_call(int lane) const;
  unsigned lanes_with(State state) const;
  bool release_conditions();
  bool release_barrier();

  void resume_or_start(int thread);
  static void start_threads(void* block);
  void start_next_thread();
  void wait(State state, CallSite site);
  void select(int thread);

  int in_order(int i, int count) const;
  uint3 thread_index(int thread) const;
  std::string where(int thread) const;
  std::string what_it_does(int thread) const;
  [[noreturn]] void fail_waiting(int thread, const std::string& for_whom) const;

  const Launch* launch_ = nullptr;
  uint3 index_{};
  int64_t number_ = 0;
  bool reverse_ = false;
  std::unique_ptr<void, Free> shared_;
  std::vector<Thread> threads_;
  int current_ = 0;           // the thread that is running
  std::exception_ptr fault_;  // thrown by a thread

  // The warp that is running: threads [warp_first_, warp_first_ + warp_size_).
  int warp_first_ = 0, warp_size_ = 0;
  int started_ = 0;  // so many of its lanes, in order

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_fibers_;
  Fiber* fiber_ = nullptr;  // the one that is running
};

/// The running block. Throws Error if `call` was made outside of a kernel.
Block& running_block(const char* call);

std::string to_string(uint3 index);  // "(0,1,2)"

}  // namespace mutilde::emulation
