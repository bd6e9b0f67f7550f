// The two things that CUDA spells outside of C++, as functions: kernel<<<...>>>(...) is launch(),
// and `extern __shared__` is dynamic_shared(); and check(), for the calls of CUDA that return an
// error. Everything else in a .cu file here is CUDA's own
// spelling, and compiles with nvcc or, against cuda/emulation, with any C++20 compiler.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <string>
#include <string_view>

#include <cuda_runtime.h>

#include "core/error.h"
#ifndef __CUDACC__
#include "cuda/emulation/grid.h"
#include "cuda/emulation/runtime_api.h"
#include "cuda/emulation/thread.h"
#endif

namespace mutilde::cuda {

/// Throws Error: what failed, and why, once. A fault of a kernel is told by a later call, whatever
/// that does, and by all from then on: by the one that waits for the device too.
inline void check(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would tell it again
  const bool may_be_a_kernels = error >= cudaErrorIllegalAddress && error < cudaErrorNotPermitted;
  const char* blocking = std::getenv("CUDA_LAUNCH_BLOCKING");
  const bool launches_wait = blocking != nullptr && *blocking != '0';
  fail<Error>(
      "{}: {}{}", what, cudaGetErrorString(error),
      may_be_a_kernels && !launches_wait && cudaDeviceSynchronize() == error
          ? "; a kernel that was launched before has failed: with CUDA_LAUNCH_BLOCKING=1 in the "
            "environment this message names it"
          : "");
}

template <auto kernel>
constexpr const char* pretty_function() {
  return __PRETTY_FUNCTION__;
}

/// Of mutilde::cuda::map "map<float, Silu>"; from clang 14 "mutilde::cuda::map".
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

struct LaunchConfig {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  // dynamic ones, a block
  cudaStream_t stream = nullptr;
  // Where launch() is called, for messages.
  const char* file = __builtin_FILE();
  int line = __builtin_LINE();
};

inline std::string launch_text(const char* when, std::string_view kernel,
                               const LaunchConfig& config) {
  return fmt::format(
      "cuda: {} of {} at {}:{} (grid {},{},{}, block {},{},{}, {} bytes of shared memory)", when,
      kernel, config.file, config.line, config.grid.x, config.grid.y, config.grid.z, config.block.x,
      config.block.y, config.block.z, config.shared_bytes);
}

/// Starts a kernel:
///
///   launch<matmul_tiled<float>>({.grid = {8, 4}, .block = 256}, a, b, out, M, N, K);
///
/// The kernel is a template argument so that its name is known without a macro. On a GPU this
/// returns at once, and throws Error if the launch was refused, or if something failed before it and
/// was not told; emulated, it returns when the kernel is done, and throws emulation::KernelFault for
/// all that went wrong in it.
template <auto kernel, class... Arguments>
void launch(const LaunchConfig& config, Arguments... arguments) {
  static_assert((sizeof(Arguments) + ... + 0) <= 4096, "a kernel takes 4 KiB of arguments");
  cudaError_t error = cudaPeekAtLastError();
  if (error != cudaSuccess)
    check(error, launch_text("before the launch", kernel_name<kernel>(), config));
#ifdef __CUDACC__
  // Up to 48 KiB are free to use, more must be asked for; a kernel's static arrays, 16 KiB at most where it has
  // dynamic ones too, count as well.
  if (config.shared_bytes > 32 * 1024) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(config.shared_bytes));
  }
  if (error == cudaSuccess) {
    kernel<<<config.grid, config.block, config.shared_bytes, config.stream>>>(arguments...);
    error = cudaGetLastError();
  }
  if (error != cudaSuccess) check(error, launch_text("launch", kernel_name<kernel>(), config));
#else
  // A kernel has a copy of its arguments, and so has each of its threads.
  const auto run_thread = [&] { kernel(arguments...); };
  emulation::run_grid(
      {.kernel = kernel_name<kernel>(),
       .grid = config.grid,
       .block = config.block,
       .shared_bytes = config.shared_bytes,
       .site = {config.file, config.line},
       .run_thread = [](const void* run) { (*static_cast<const decltype(run_thread)*>(run))(); },
       .arguments = &run_thread});
#endif
}

/// The block's dynamic shared memory, of which the launch said the size. All calls give the same
/// bytes, whatever T is: a T, or the first of an array of T.
#ifdef __CUDACC__
template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}
#else
template <class T>
T* dynamic_shared(emulation::CallSite site = emulation::CallSite::here()) {
  return static_cast<T*>(emulation::dynamic_shared_memory(sizeof(T), site));
}
#endif

}  // namespace mutilde::cuda
