#include "core/caching_allocator.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <utility>

namespace mutilde {

namespace {

/// Whole cache lines.
size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

CachingAllocator::CachingAllocator(Allocate allocate, Release release, bool caches)
    : allocate_(std::move(allocate)), release_(std::move(release)), caches_(caches) {}

CachingAllocator::~CachingAllocator() { release_cached_locked(); }

void* CachingAllocator::allocate(size_t bytes) {
  if (bytes == 0) return nullptr;
  std::lock_guard lock(mutex_);
  const auto give_up = [&] {
    fail<OutOfMemoryError>("out of memory: {} bytes asked, {} bytes live", bytes,
                           stats_.live_bytes);
  };
  if (bytes > PTRDIFF_MAX) give_up();  // no object can be as large; rounding would overflow
  size_t size = bytes;
  void* data = nullptr;
  if (caches_) {
    size = rounded(bytes);
    Pool& pool = pool_for(size);
    const Place block = find_block(pool, size);
    if (block == pool.blocks.end()) give_up();
    data = block->first;
  } else {
    data = allocate_(size);
    if (data == nullptr) give_up();
  }
  stats_.live_bytes += static_cast<int64_t>(size);
  stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.live_bytes);
  return data;
}

CachingAllocator::Place CachingAllocator::find_block(Pool& pool, size_t size) {
  Place block;
  if (const auto fit = pool.free.lower_bound({size, nullptr}); fit != pool.free.end()) {
    block = pool.blocks.find(fit->second);
    pool.free.erase(fit);
    stats_.cached_bytes -= static_cast<int64_t>(block->second.size);
    block->second.free = false;
  } else {
    size_t segment = 0;
    void* data = new_segment(pool, size, segment);
    if (data == nullptr) return pool.blocks.end();
    block = pool.blocks.emplace(static_cast<char*>(data), Block{segment, false, true}).first;
  }
  if (const size_t rest = block->second.size - size; rest > 0) {
    block->second.size = size;
    const Place after = pool.blocks.emplace(block->first + size, Block{rest, false, false}).first;
    set_free(pool, after);
  }
  return block;
}

void* CachingAllocator::new_segment(Pool& pool, size_t size, size_t& segment) {
  segment = std::max(size, pool.segment);
  if (void* data = allocate_(segment); data != nullptr) return data;
  segment = size;  // a tight fit may be there where a whole segment is not
  if (void* data = allocate_(segment); data != nullptr) return data;
  if (holds_) return nullptr;
  release_cached_locked();
  return allocate_(segment);
}

void CachingAllocator::hold() {
  std::lock_guard lock(mutex_);
  holds_ = true;
}

void CachingAllocator::let_go() {
  std::lock_guard lock(mutex_);
  holds_ = false;
}

void CachingAllocator::release(void* data, size_t bytes) {
  if (data == nullptr) return;
  std::lock_guard lock(mutex_);
  if (!caches_) {
    stats_.live_bytes -= static_cast<int64_t>(bytes);
    return release_(data, bytes);
  }
  const size_t size = rounded(bytes);
  stats_.live_bytes -= static_cast<int64_t>(size);
  Pool& pool = pool_for(size);
  set_free(pool, pool.blocks.find(static_cast<char*>(data)));
}

/// The block joins its free neighbours of the same segment.
void CachingAllocator::set_free(Pool& pool, Place block) {
  stats_.cached_bytes += static_cast<int64_t>(block->second.size);
  const auto join = [&](Place before, Place after) {
    before->second.size += after->second.size;
    pool.blocks.erase(after);
  };
  const auto take = [&](Place neighbour) {
    pool.free.erase({neighbour->second.size, neighbour->first});
  };
  if (const Place next = std::next(block);
      next != pool.blocks.end() && next->second.free && !next->second.first) {
    take(next);
    join(block, next);
  }
  if (!block->second.first && std::prev(block)->second.free) {
    const Place before = std::prev(block);
    take(before);
    join(before, block);
    block = before;
  }
  block->second.free = true;
  pool.free.emplace(block->second.size, block->first);
}

void CachingAllocator::release_cached() {
  std::lock_guard lock(mutex_);
  release_cached_locked();
}

/// A segment goes back when all of it is free.
void CachingAllocator::release_cached_locked() {
  for (Pool& pool : pools_) {
    for (Place block = pool.blocks.begin(); block != pool.blocks.end();) {
      const Place next = std::next(block);
      if (block->second.free && block->second.first &&
          (next == pool.blocks.end() || next->second.first)) {
        release_(block->first, block->second.size);
        stats_.cached_bytes -= static_cast<int64_t>(block->second.size);
        pool.free.erase({block->second.size, block->first});
        pool.blocks.erase(block);
      }
      block = next;
    }
  }
}

MemoryStats CachingAllocator::stats() const {
  std::lock_guard lock(mutex_);
  return stats_;
}

void CachingAllocator::reset_peak() {
  std::lock_guard lock(mutex_);
  stats_.peak_bytes = stats_.live_bytes;
}

}  // namespace mutilde
