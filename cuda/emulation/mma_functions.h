// Stands in for the PTX of cuda/mma_instructions.h: the same functions, as C++.
//
// A copy is made at the last moment, when it is waited for: a kernel that reads too early finds what was
// there before. In the reverse order of threads it is made at once: one that starts it too early overwrites
// what others have not read yet. Sums are added in the order of k, where tensor cores add in groups and cut
// off bits.
#pragma once

#include <cstdint>

#include "cuda/emulation/include/cuda_bf16.h"
#include "cuda/emulation/include/cuda_fp16.h"
#include "cuda/emulation/thread.h"

namespace mutilde::emulation {

void copy_async(void* to, const void* from, int bytes, bool exists, CallSite site);
/// Makes the copies of all but the last `pending` groups.
void make_copies(int pending);
void load_matrices(uint32_t (&matrices)[4], const void* row, bool transposed, CallSite site);

}  // namespace mutilde::emulation

namespace mutilde::cuda {

using emulation::CallSite;

/// E: __nv_bfloat16 or __half, here and below.
template <class E>
void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
              CallSite site = CallSite::here());

inline void load_matrices(uint32_t (&matrices)[4], const void* row,
                          CallSite site = CallSite::here()) {
  emulation::load_matrices(matrices, row, false, site);
}
inline void load_transposed(uint32_t (&matrices)[4], const void* row,
                            CallSite site = CallSite::here()) {
  emulation::load_matrices(matrices, row, true, site);
}

template <int bytes>
void copy_async(void* shared, const void* global, bool exists, CallSite site = CallSite::here()) {
  static_assert(bytes == 4 || bytes == 16);
  emulation::copy_async(shared, global, bytes, exists, site);
}
void commit_copies();
template <int pending>
void wait_for_copies() {
  emulation::make_copies(pending);
}

template <class E>
uint32_t pack(float low, float high);
float fast_exp2(float x);

}  // namespace mutilde::cuda
