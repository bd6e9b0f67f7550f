#include <cstdlib>
#include <cstring>

#include "core/address_sanitizer.h"
#include "core/cpu/cpu_backend.h"
#include "core/cpu/pages.h"

namespace mutilde {

// The address sanitizer sees the end of a heap block, not of one cut from a segment.
constexpr bool kCaches = !kAsan;

CpuBackend::CpuBackend()
    : allocator_(
          allocate_pages, [](void* data, size_t) { std::free(data); }, kCaches) {}

void* CpuBackend::allocate(size_t bytes) { return allocator_.allocate(bytes); }
void CpuBackend::release(void* data, size_t bytes) { allocator_.release(data, bytes); }
MemoryStats CpuBackend::memory_stats() const { return allocator_.stats(); }
void CpuBackend::reset_peak_memory() { allocator_.reset_peak(); }

void CpuBackend::copy(const void* from, void* to, size_t bytes) {
  if (bytes > 0) std::memmove(to, from, bytes);
}
void CpuBackend::copy_from_host(const void* host, void* device, size_t bytes) {
  copy(host, device, bytes);
}
void CpuBackend::copy_to_host(const void* device, void* host, size_t bytes) {
  copy(device, host, bytes);
}
std::function<void()> CpuBackend::start_copy_to_host(const void* device, void* host, size_t bytes) {
  copy(device, host, bytes);
  return [] {};
}

}  // namespace mutilde
