#include "cuda/emulation/memory.h"

#include <cstdlib>
#include <cstring>

#include "cuda/emulation/options.h"
#include "cuda/emulation/sanitizers.h"

namespace mutilde::emulation {

void* allocate(size_t bytes) {
  constexpr size_t kAlignment = 256;
  void* data = nullptr;
  // Not aligned_alloc: that wants the size to be a multiple of the alignment.
  if (posix_memalign(&data, kAlignment, bytes) != 0) return nullptr;
  if (options().fill_with_nan) std::memset(data, 0xff, bytes);
  mark_uninitialised(data, bytes);
  return data;
}

void release(void* data) { std::free(data); }

}  // namespace mutilde::emulation
