// What a test may vary about the emulated device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/emulation/runtime_api.h"

namespace mutilde::emulation {

/// In what order the threads of a block take their turns between two barriers. A GPU promises
/// none: a kernel whose result depends on it lacks a barrier.
enum class Order { kForward, kReverse };

struct Options {
  int host_threads = 0;  // that blocks are spread over; 0: as many as OpenMP would use
  Order order = Order::kForward;
  /// Fresh shared and device memory is filled with 0xff: a NaN in every floating type, -1 in the
  /// integers. Off, it holds what malloc gives.
  bool fill_with_nan = true;
  /// The least of the targets' limits (sm_86 and sm_89; sm_80 has 163 KiB, sm_90 and sm_100 have
  /// 227): what runs here fits all of them.
  size_t shared_bytes_per_block = 99 * 1024;
  /// The GPU's compute capability, 80 for 8.0; a Hopper's is 90.
  int capability = 80;
  /// The GPU is a Hopper (sm_90): it has the instructions of cuda/hopper, and its own limit.
  bool hopper = false;
  /// No single block of memory can be larger. (What is in use does not count.)
  size_t memory_bytes = size_t{16} << 30;
  size_t pinned_bytes = size_t{16} << 30;  // the same of cudaMallocHost's
  /// After so many launches the device is lost, as by a kernel that wrote where it may not: from
  /// then on every call that can fail does. Counted down; negative: never.
  int64_t launches_until_lost = -1;
  /// What cudaGetDeviceCount says; unless it is success, there is no device.
  cudaError_t device_error = cudaSuccess;
};

/// Read at each launch. Not to be changed during one.
Options& options();

}  // namespace mutilde::emulation
