// Memory in huge pages where the system has them (Linux, transparent huge pages on "madvise").
//
// Winograd's transforms write 36 streams at once, each on a page of its own, and read as many: more
// than the 64 entries of a core's first address-translation buffer. In pages of 2 MB all of a block
// lies on one or two. A first touch also costs one page fault in place of 512.
#pragma once

#include <cstddef>
#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mutilde {

inline constexpr size_t kHugePage = 2 * 1024 * 1024;

/// Aligned to 64 bytes, from one huge page on to whole ones; null if there is none. To be freed by
/// std::free.
inline void* allocate_pages(size_t bytes) {
  void* data = nullptr;
  const size_t alignment = bytes >= kHugePage ? kHugePage : 64;
  if (posix_memalign(&data, alignment, bytes) != 0) return nullptr;
#if defined(MADV_HUGEPAGE)
  // Advice: that it is not taken is no error. What does not fill a huge page stays in small ones.
  if (bytes >= kHugePage) madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return data;
}

}  // namespace mutilde
