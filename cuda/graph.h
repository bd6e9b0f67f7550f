// A CUDA graph: launches and copies that are collected first and then started all at once.
//
// What it may save is the host's and the front end's work for each launch, some 2 us. What it costs
// is that the same launches must be collected anew each time, since arguments change with each
// step of training (addresses, positions in random streams, bias corrections), and compared with
// what was started last.
#pragma once

#include <functional>

#include <cuda_runtime.h>

#include "core/caching_allocator.h"
#include "cuda/staging.h"

namespace mutilde::cuda {

class Graph {
 public:
  /// `memory`: what the work's launches use is of it. `staging`: through which its copies go.
  Graph(CachingAllocator& memory, Staging& staging) : memory_(memory), staging_(staging) {}
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  /// Calls work(), then starts what it collected. Until then the memory's cache is kept, since what
  /// it gave back to the system could be in use by what is collected and not started yet; so the
  /// first call collects nothing, and memory is there when it counts. What work() throws leaves the
  /// host's side of it done and the device's not: do not go on with what it wrote to.
  void run(const std::function<void()>& work);

 private:
  void start(cudaGraph_t graph);

  CachingAllocator& memory_;
  Staging& staging_;
  cudaGraphExec_t executable_ = nullptr;  // what was started last
  bool warm_ = false;
};

/// MUTILDE_CUDA_GRAPH=1: whether launch_together() does so. Not without a cache (cuda/staging.h).
bool graphs_wanted();

}  // namespace mutilde::cuda
