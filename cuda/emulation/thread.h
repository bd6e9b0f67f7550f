// What CUDA gives every thread: its indices, the block's barrier, dynamic shared memory.
#pragma once

#include <cstddef>

#include "cuda/emulation/block.h"
#include "cuda/emulation/fault.h"
#include "cuda/emulation/vector_types.h"

// NOLINTBEGIN(readability-identifier-naming, bugprone-reserved-identifier): CUDA's names.

// Of the host thread, not of the fiber: Block::select() sets threadIdx each time that a thread gets
// its turn. With constinit a read is one load, without the check that C++ otherwise makes for a
// thread-local variable of another file.
inline constinit thread_local uint3 threadIdx{};
inline constinit thread_local uint3 blockIdx{};
inline constinit thread_local dim3 blockDim{};
inline constinit thread_local dim3 gridDim{};
inline constexpr int warpSize = 32;

inline void __syncthreads(
    mutilde::emulation::CallSite site = mutilde::emulation::CallSite::here()) {
  mutilde::emulation::running_block("__syncthreads").wait_at_barrier(site);
}

// The compiler cannot move a store past a call that it knows nothing of, but a host thread that
// runs another block can see two of them in another order.
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// NOLINTEND(readability-identifier-naming, bugprone-reserved-identifier)

namespace mutilde::emulation {

/// The thread's place in its block, x fastest: threads 0-31 are the first warp.
inline int linear_thread() {
  return static_cast<int>(threadIdx.x +
                          blockDim.x * (threadIdx.y + size_t{blockDim.y} * threadIdx.z));
}

inline int lane_index() { return linear_thread() % kWarpSize; }

inline void* dynamic_shared_memory(size_t at_least, CallSite site) {
  Block& block = running_block("dynamic_shared");
  if (block.dynamic_shared_bytes() < at_least) {
    fail<KernelFault>("{}: dynamic_shared() at {} wants {} bytes, the launch gave {}",
                      block.where(), site.to_string(), at_least, block.dynamic_shared_bytes());
  }
  return block.dynamic_shared_memory();
}

}  // namespace mutilde::emulation
