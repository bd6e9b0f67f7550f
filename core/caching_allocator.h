// A caching allocator: freed blocks are kept by size and handed out again, so that the buffers of a
// finished graph serve the next step and the system allocator is left alone after the first.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <vector>

#include "core/backend.h"

namespace mutilde {

class CachingAllocator {
 public:
  using Allocate = std::function<void*(size_t bytes)>;  // null when out of memory
  using Release = std::function<void(void* data, size_t bytes)>;

  /// Without `caches` every block is of exactly the size that was asked and is given back at once:
  /// for tools that watch over memory, and see no borders between blocks that are used again.
  CachingAllocator(Allocate allocate, Release release, bool caches = true);
  ~CachingAllocator();

  /// Never null for bytes > 0. Frees the cache and tries again before it throws OutOfMemoryError
  /// (what was asked, what is live). Thread-safe, like all the functions here.
  void* allocate(size_t bytes);
  void release(void* data, size_t bytes);
  void release_cached();
  MemoryStats stats() const;
  void reset_peak();

 private:
  void release_cached_locked();
  size_t block_size(size_t bytes) const;

  Allocate allocate_;
  Release release_;
  bool caches_;
  mutable std::mutex mutex_;
  std::map<size_t, std::vector<void*>> free_;  // by rounded size
  MemoryStats stats_;
};

}  // namespace mutilde
