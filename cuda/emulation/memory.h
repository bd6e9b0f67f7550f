// Memory of the emulated device: heap blocks of exactly the size that was asked for, so that the
// address sanitizer sees one byte too far.
#pragma once

#include <cstddef>

namespace mutilde::emulation {

/// Aligned to 256 bytes as cudaMalloc's is; filled as options() say, and never written as far as
/// valgrind knows. Null if there is not so much memory.
void* allocate(size_t bytes);
void release(void* data);

}  // namespace mutilde::emulation
