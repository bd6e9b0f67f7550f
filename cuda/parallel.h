// What the kernels of all families share: a thread an element, sums over a warp or a block,
// dispatch on the dtype, buffers that live as long as a call.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/backend.h"
#include "cuda/launch.h"

namespace mutilde::cuda {

template <class Integer>
__host__ __device__ constexpr Integer ceil_div(Integer n, Integer d) {
  return (n + d - 1) / d;
}

/// Calls f(T{}) with the element type.
template <class F>
void for_float(DType dtype, const F& f) {
  if (dtype == DType::kFloat32) return f(float{});
  if (dtype == DType::kFloat64) return f(double{});
  fail<DTypeError>("cuda kernel: float32 or float64 expected, {} given", name_of(dtype));
}

// A tensor may be stored in a short type, bfloat16 or float16, which halves the bytes that a kernel moves.
// Nothing is computed in it: an element becomes a float on its way into a register, and is rounded once on its
// way out. (What is over 65504 in size becomes infinity in float16. It and NaN stay what they are.)

template <class T>
constexpr bool kIsShort = std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>;

/// What is computed with where elements are stored as T.
template <class T>
using Computed = std::conditional_t<kIsShort<T>, float, T>;

template <class T>
__device__ Computed<T> number(T element) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __bfloat162float(element);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __half2float(element);
  } else {
    return element;
  }
}

template <class T>
__device__ T stored(Computed<T> number) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(number);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(number);
  } else {
    return number;
  }
}

/// Two neighbours of a short type, as a register holds them (pack(), mma_instructions.h).
template <class T>
__device__ float2 unpack(uint32_t pair) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000));
  } else {
    return make_float2(__half2float(__ushort_as_half(static_cast<unsigned short>(pair))),
                       __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16))));
  }
}

template <class T>
constexpr DType short_dtype() {
  static_assert(kIsShort<T>);
  return std::is_same_v<T, __half> ? DType::kFloat16 : DType::kBFloat16;
}

/// Calls f(T{}) with a short type.
template <class F>
void for_short(DType dtype, const F& f) {
  if (dtype == DType::kBFloat16) return f(__nv_bfloat16{});
  if (dtype == DType::kFloat16) return f(__half{});
  fail<DTypeError>("cuda kernel: bfloat16 or float16 expected, {} given", name_of(dtype));
}

/// Calls f(T{}) with the type that elements are stored as; Computed<T> is what to compute with.
template <class F>
void for_stored(DType dtype, const F& f) {
  if (is_short(dtype)) return for_short(dtype, f);
  for_float(dtype, f);
}

/// Neighbours that are loaded or stored at once. A thread that moves 16 bytes at a time has enough of them
/// under way to keep the memory busy; with 2 it has not.
template <class T, int n>
struct alignas(sizeof(T) * n) Pack {
  T at[n];
};

/// As many elements as 16 bytes hold.
template <class T>
constexpr int kWidth = 16 / sizeof(T);

inline bool is_aligned(const void* data, size_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}
/// Do all begin at multiples of 16 bytes?
inline bool are_aligned(std::initializer_list<const void*> arrays) {
  return std::all_of(arrays.begin(), arrays.end(),
                     [](const void* array) { return is_aligned(array, 16); });
}

/// Calls f(Word{}) with an integer as large as an element, for kernels that only move them.
template <class F>
void for_word(DType dtype, const F& f) {
  switch (size_of(dtype)) {
    case 1:
      return f(uint8_t{});
    case 2:
      return f(uint16_t{});
    case 4:
      return f(uint32_t{});
    default:
      return f(uint64_t{});
  }
}

constexpr int kBlockThreads = 256;

/// Blocks of kBlockThreads for n elements. 2048 threads are all that a multiprocessor holds, and
/// the largest GPU has some 150 of them: at most twice as many blocks as fit, so that those that
/// finish early are followed by others.
inline unsigned blocks_for(int64_t n) {
  constexpr int64_t kMaxBlocks = 2 * 150 * 2048 / kBlockThreads;
  return static_cast<unsigned>(std::min(ceil_div<int64_t>(n, kBlockThreads), kMaxBlocks));
}

/// f(i) for each i in [0, n). A grid-stride loop: any grid does any n, so that the grid can be what
/// fills the GPU and not what n asks for. Neighbouring threads take neighbouring i: where f reads
/// and writes element i of arrays, the 32 accesses of a warp are one of 128 bytes. __grid_constant__: f stays
/// in constant memory. One with arrays that are indexed (Strided) would be copied to each thread's own memory.
template <class F>
__global__ void for_each(int64_t n, const __grid_constant__ F f) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride) f(i);
}

/// F is a struct and no lambda: a kernel's template argument must have a name that both compilers
/// can spell.
template <class F>
void launch_for_each(int64_t n, const F& f) {
  if (n == 0) return;  // a grid of no blocks is an error
  launch<for_each<F>>({.grid = blocks_for(n), .block = kBlockThreads}, n, f);
}

/// Threads for a block that together do n things: whole warps, at most kBlockThreads.
inline unsigned threads_for(int64_t n) {
  return static_cast<unsigned>(
      std::clamp<int64_t>(ceil_div<int64_t>(n, 32) * 32, 32, kBlockThreads));
}

constexpr unsigned kWholeWarp = 0xffffffff;

/// The sum over the warp's lanes, given to all of them: in five steps each lane adds what the lane
/// 16, 8, 4, 2, 1 away has, from register to register.
template <class T>
__device__ T warp_sum(T value) {
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, distance);
  }
  return value;
}

template <class T>
__device__ T warp_max(T value) {
  for (int distance = 16; distance > 0; distance /= 2) {
    value = max(value, __shfl_xor_sync(kWholeWarp, value, distance));
  }
  return value;
}

/// The sum over the threads of a block of one dimension and whole warps, given to all of them.
template <class T>
__device__ T block_sum(T value) {
  __shared__ T of_warp[32];
  value = warp_sum(value);
  __syncthreads();  // all have read the last call's
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  T sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += of_warp[warp];
  return sum;
}

/// Device memory for the length of a call. It may be handed out again before the kernels that use
/// it have run: those that are launched later run later.
template <class T>
class Buffer {
 public:
  Buffer(Backend& backend, int64_t size)
      : backend_(backend),
        bytes_(static_cast<size_t>(size) * sizeof(T)),
        data_(static_cast<T*>(backend.allocate(bytes_))) {}
  ~Buffer() { backend_.release(data_, bytes_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return data_; }

 private:
  Backend& backend_;
  size_t bytes_;
  T* data_;
};

}  // namespace mutilde::cuda
