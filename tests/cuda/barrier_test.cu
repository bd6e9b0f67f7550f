// Indices, barriers and shared memory.
#include <gtest/gtest.h>

#include "cuda/launch.h"
#include "tests/cuda/device_array.h"

namespace mutilde::cuda {
namespace {

__global__ void write_place(int* out) {
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int threads = blockDim.x * blockDim.y * blockDim.z;
  out[block * threads + thread] = block * 1000 + thread;
}

TEST(Launch, GivesEveryThreadOfAThreeDimensionalGridItsPlace) {
  const int blocks = 3 * 2 * 2, threads = 5 * 3 * 4;
  DeviceArray<int> out(blocks * threads);
  launch<write_place>({.grid = {3, 2, 2}, .block = {5, 3, 4}}, out.data());
  const std::vector<int> host = out.to_host();
  for (int i = 0; i < blocks * threads; ++i) {
    ASSERT_EQ(host[i], i / threads * 1000 + i % threads) << i;
  }
}

__global__ void reverse_in_block(const int* x, int* out) {
  __shared__ int buffer[256];
  const int base = blockIdx.x * blockDim.x;
  buffer[threadIdx.x] = x[base + threadIdx.x];
  __syncthreads();
  out[base + threadIdx.x] = buffer[blockDim.x - 1 - threadIdx.x];
}

TEST(SharedMemory, IsSeenByTheWholeBlockAfterABarrier) {
  for (const int threads : {1, 31, 32, 33, 200, 256}) {
    const int blocks = 7;
    std::vector<int> x(blocks * threads);
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<int>(i * i % 1009);
    const DeviceArray<int> in(x);
    DeviceArray<int> out(x.size());
    launch<reverse_in_block>({.grid = blocks, .block = threads}, in.data(), out.data());
    const std::vector<int> host = out.to_host();
    for (int i = 0; i < blocks * threads; ++i) {
      ASSERT_EQ(host[i], x[i / threads * threads + threads - 1 - i % threads]);
    }
  }
}

/// A tree in shared memory: the classic reduction. blockDim.x is a power of two.
__global__ void sum_of_block(const float* x, float* out, int n) {
  float* partial = dynamic_shared<float>();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  partial[threadIdx.x] = i < n ? x[i] : 0.0F;
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
  }
  if (threadIdx.x == 0) out[blockIdx.x] = partial[0];
}

TEST(SharedMemory, ReducesAnArrayOfAnyLength) {
  for (const int n : {1, 63, 64, 65, 1000, 4097}) {
    const int threads = 64, blocks = (n + threads - 1) / threads;
    const std::vector<float> x = numbers<float>(n);
    const DeviceArray<float> in(x);
    DeviceArray<float> out(blocks);
    launch<sum_of_block>(
        {.grid = blocks, .block = threads, .shared_bytes = threads * sizeof(float)}, in.data(),
        out.data(), n);
    const std::vector<float> host = out.to_host();
    for (int block = 0; block < blocks; ++block) {
      double sum = 0;
      for (int i = block * threads; i < std::min(n, (block + 1) * threads); ++i) sum += x[i];
      // Six additions deep, of partial sums of at most 64: 6 * 64 * 2^-24.
      ASSERT_NEAR(host[block], sum, 2.3e-5);
    }
  }
}

struct TwoArrays {
  int a[32];
  double b[16];
};

__global__ void use_two_arrays(double* out) {
  TwoArrays& shared = *dynamic_shared<TwoArrays>();
  shared.a[threadIdx.x] = threadIdx.x;
  if (threadIdx.x < 16) shared.b[threadIdx.x] = 0.5 * threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = shared.a[31 - threadIdx.x] + shared.b[threadIdx.x / 2];
}

TEST(SharedMemory, CanBeAStructOfSeveralArrays) {
  DeviceArray<double> out(32);
  launch<use_two_arrays>({.grid = 1, .block = 32, .shared_bytes = sizeof(TwoArrays)}, out.data());
  const std::vector<double> host = out.to_host();
  for (int i = 0; i < 32; ++i) EXPECT_EQ(host[i], 31 - i + 0.5 * (i / 2));
}

/// Threads of the first warp alone go round this loop; the barrier after it is everybody's.
__global__ void uneven_work(int* out) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  if (threadIdx.x < 7) {
    for (unsigned i = 0; i <= threadIdx.x; ++i) atomicAdd(&count, 1);
  }
  __syncthreads();
  out[threadIdx.x] = count;
}

TEST(Barrier, WaitsForThreadsWithMoreToDo) {
  DeviceArray<int> out(96);
  launch<uneven_work>({.grid = 1, .block = 96}, out.data());
  for (const int count : out.to_host()) EXPECT_EQ(count, 1 + 2 + 3 + 4 + 5 + 6 + 7);
}

}  // namespace
}  // namespace mutilde::cuda
