// A caching allocator: freed memory is handed out again, so that the buffers of a finished graph
// serve the next step and the system allocator is left alone after the first.
//
// Memory comes from the system in segments. A request takes the smallest free block that holds it
// and leaves the rest free; a freed block grows together with its free neighbours. So the gradients
// of the backward pass lie where the activations lay that it has used up, whatever both their
// sizes.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <utility>

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

  /// Aligned to 64 bytes where the system's memory is. Never null for bytes > 0. Frees the cache
  /// and tries again before it throws OutOfMemoryError (what was asked, what is live).
  /// Thread-safe, like all the functions here.
  void* allocate(size_t bytes);
  void release(void* data, size_t bytes);
  void release_cached();
  /// From now on nothing that is cached goes back to the system: work not yet started may use it
  /// (cuda/graph.h): what finds no room is out of memory.
  void hold();
  void let_go();
  MemoryStats stats() const;
  void reset_peak();

 private:
  struct Block {
    size_t size = 0;
    bool free = false, first = false;  // first: of its segment
  };
  /// Small and large blocks lie apart: a small one that lives long must not split a large one's
  /// room.
  struct Pool {
    size_t segment;                           // bytes, at least, of what is asked from the system
    std::map<char*, Block> blocks;            // all, by address
    std::set<std::pair<size_t, char*>> free;  // by size, then address
  };
  using Place = std::map<char*, Block>::iterator;

  Pool& pool_for(size_t size) { return pools_[size < kLarge ? 0 : 1]; }
  /// Cuts `size` from the smallest free block that holds it, else from a new segment; end() if
  /// there is no memory.
  Place find_block(Pool& pool, size_t size);
  void* new_segment(Pool& pool, size_t size, size_t& segment);
  void set_free(Pool& pool, Place block);
  void release_cached_locked();

  static constexpr size_t kLarge = size_t{1} << 16;
  std::array<Pool, 2> pools_{{{size_t{2} << 20, {}, {}}, {size_t{64} << 20, {}, {}}}};
  Allocate allocate_;
  Release release_;
  bool caches_, holds_ = false;
  mutable std::mutex mutex_;
  MemoryStats stats_;
};

}  // namespace mutilde
