// Copies between host and device that nobody waits for.
//
// A GPU's copy engine runs beside the host only to and from memory that the system may not move:
// pinned. Data on its way to the device is put into such memory first, and the caller's own is free
// again at once; the pinned block is when the copy is done, which an event behind it tells.
// Where the system gives no pinned memory (more), other memory takes its place: the same copies, and
// the host may wait for each.
#pragma once

#include <deque>
#include <functional>
#include <vector>

#include <cuda_runtime.h>

#include "core/caching_allocator.h"

namespace mutilde::cuda {

/// Is freed memory kept for reuse? Not where MUTILDE_CUDA_CACHE=0 says so, nor emulated: a tensor is then a block
/// of exactly its size, and a sanitizer sees where it ends and when it is gone. Emulated, what a kernel reads
/// before anybody wrote it is NaN too.
bool caches();

/// On the default stream, behind all that was launched before. For one host thread at a time.
class Staging {
 public:
  Staging();
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// Waits only where the copies on their way fill what is kept for them.
  void copy_to_device(const void* host, void* device, size_t bytes);
  /// `host` has the data when what is returned was called, once; that waits.
  std::function<void()> copy_to_host(const void* device, void* host, size_t bytes);

  /// From now on copies to the device are collected (cuda/graph.h): their blocks are kept, and no
  /// copy to the host may be started.
  void hold();
  /// What was collected has been started, or never will be.
  void let_go();

 private:
  struct Block {
    void* data;
    size_t bytes;
    bool pinned;
    cudaEvent_t done;
  };

  Block take(size_t bytes);
  void give_back(const Block& block);

  CachingAllocator pinned_;
  std::deque<Block> on_their_way_;  // to the device, in order
  size_t bytes_on_their_way_ = 0;
  std::vector<Block> held_;
  bool holds_ = false;
};

}  // namespace mutilde::cuda
