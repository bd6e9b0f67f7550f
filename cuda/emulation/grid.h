// Runs a grid: checks the launch, then hands its blocks to the host's threads.
#pragma once

#include <cstddef>
#include <string_view>

#include "cuda/emulation/fault.h"
#include "cuda/emulation/vector_types.h"

namespace mutilde::emulation {

/// One launch of a kernel. `run_thread(arguments)` is the kernel as one thread runs it.
struct Launch {
  std::string_view kernel;
  dim3 grid, block;
  size_t shared_bytes = 0;
  CallSite site;
  void (*run_thread)(const void* arguments) = nullptr;
  const void* arguments = nullptr;
};

/// Returns when all blocks are done. Throws KernelFault where the grid, the block or the shared
/// memory is over the device's limits, and the fault of the first block that has one: first by
/// index, so that it is the same one for any number of host threads.
void run_grid(const Launch& launch);

/// The name of the kernel that this host thread launched last.
std::string_view last_kernel();

}  // namespace mutilde::emulation
