// Working memory of the kernels: one growing buffer for each thread and use, kept until the thread
// ends, so that a kernel allocates nothing once it has seen its largest shape.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "core/cpu/pages.h"

namespace mutilde {

/// A kernel asks for each use once at a time. A buffer may be written by other threads as long as
/// its owner waits for them.
enum class Scratch {
  kPackedA,   // one factor of a product, copied: patches, an input with its border, taps
  kPackedB,   // the other: panels of weights, Winograd's weights or the sums in their place
  kFactors,   // either, as pairs of bfloat16
  kRuns,      // where a tile's rows lie, and
  kBounds,    //   where each tile's runs begin
  kZeros,     // a pixel outside
  kPartials,  // sums of splits, one a split
  kSums,      // long sums of one thread
  kChannels,  // a few numbers a channel
  kLogits,
  kGradients,
  kTiles,  // Winograd's transformed tiles
  kCount
};

/// At least `count` elements, aligned to 64 bytes, undefined content; valid until this thread asks
/// for the same use again.
template <class T>
T* scratch(Scratch use, int64_t count) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  struct Buffer {
    std::unique_ptr<void, Free> data;
    size_t bytes = 0;
  };
  thread_local std::array<Buffer, static_cast<size_t>(Scratch::kCount)> buffers;
  Buffer& buffer = buffers[static_cast<size_t>(use)];
  size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 127) / 64 * 64;
  if (bytes > kHugePage / 8) bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  if (buffer.bytes < bytes) {
    buffer.data.reset();  // before the new one, so that both never exist at once
    buffer.bytes = 0;     // there may be no new one
    buffer.data.reset(allocate_pages(bytes));
    if (!buffer.data) throw std::bad_alloc();
    buffer.bytes = bytes;
  }
  return static_cast<T*>(buffer.data.get());
}

}  // namespace mutilde
