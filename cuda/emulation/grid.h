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

template <auto kernel>
constexpr const char* pretty_function() {
  return __PRETTY_FUNCTION__;
}

/// "mutilde::map<float, Silu>"; from clang 14 "mutilde::map".
template <auto kernel>
constexpr std::string_view kernel_name() {
  // "... pretty_function() [with auto kernel = NAME]" or, from clang, "... [kernel = &NAME]".
  constexpr std::string_view kKey = "kernel = ";
  std::string_view name = pretty_function<kernel>();
  name.remove_prefix(name.find(kKey) + kKey.size());
  name.remove_suffix(1);
  if (name.starts_with('&')) name.remove_prefix(1);
  return name;
}

}  // namespace mutilde::emulation
