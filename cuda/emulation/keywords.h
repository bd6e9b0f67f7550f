// CUDA's own keywords, for a C++ compiler. CUDA's spelling leaves nothing but macros here, and
// these are the emulation's only ones.
#pragma once

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
// A kernel's argument that all threads read where the launch put it. Here each has a copy.
#define __grid_constant__
// How many threads a block may have and how many blocks should fit a multiprocessor: advice about
// registers, of which there is no count here.
#define __launch_bounds__(...)

// One variable a block. A block runs from its first instruction to its last on one host thread, so
// a variable of that host thread is a variable of the block, and blocks on other host threads have
// theirs. That holds only as long as
//   - a fiber is never resumed by another host thread than the one that started it, and
//   - a host thread finishes one block before it begins the next.
// Unlike dynamic shared memory it is not fresh: it begins with what the last block of that host
// thread left, as on a GPU it begins with what the last block of that multiprocessor left.
#define __shared__ static thread_local
