#include "core/caching_allocator.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <utility>

namespace mutilde {

namespace {

// Sizes are rounded up, to 64 bytes below 4 KiB and to 1/8 of their power of two above: few
// distinct sizes, at most 12.5 % lost.
size_t rounded(size_t bytes) {
  const size_t grain = bytes < 4096 ? 64 : std::bit_floor(bytes) / 8;
  return (bytes + grain - 1) / grain * grain;
}

}  // namespace

CachingAllocator::CachingAllocator(Allocate allocate, Release release, bool caches)
    : allocate_(std::move(allocate)), release_(std::move(release)), caches_(caches) {}

CachingAllocator::~CachingAllocator() { release_cached_locked(); }

size_t CachingAllocator::block_size(size_t bytes) const { return caches_ ? rounded(bytes) : bytes; }

void* CachingAllocator::allocate(size_t bytes) {
  if (bytes == 0) return nullptr;
  std::lock_guard lock(mutex_);
  const auto give_up = [&] {
    fail<OutOfMemoryError>("out of memory: {} bytes asked, {} bytes live", bytes,
                           stats_.live_bytes);
  };
  if (bytes > PTRDIFF_MAX) give_up();  // no object can be as large; rounding would overflow
  const size_t size = block_size(bytes);
  void* data = nullptr;
  if (const auto fit = free_.find(size); fit != free_.end()) {
    data = fit->second.back();
    fit->second.pop_back();
    if (fit->second.empty()) free_.erase(fit);
    stats_.cached_bytes -= static_cast<int64_t>(size);
  }
  if (data == nullptr) data = allocate_(size);
  if (data == nullptr) {
    release_cached_locked();
    data = allocate_(size);
  }
  if (data == nullptr) give_up();
  stats_.live_bytes += static_cast<int64_t>(size);
  stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.live_bytes);
  return data;
}

void CachingAllocator::release(void* data, size_t bytes) {
  if (data == nullptr) return;
  const size_t size = block_size(bytes);
  std::lock_guard lock(mutex_);
  stats_.live_bytes -= static_cast<int64_t>(size);
  if (!caches_) return release_(data, size);
  free_[size].push_back(data);
  stats_.cached_bytes += static_cast<int64_t>(size);
}

void CachingAllocator::release_cached() {
  std::lock_guard lock(mutex_);
  release_cached_locked();
}

void CachingAllocator::release_cached_locked() {
  for (auto& [size, blocks] : free_) {
    for (void* block : blocks) release_(block, size);
    stats_.cached_bytes -= static_cast<int64_t>(size * blocks.size());
  }
  free_.clear();
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
