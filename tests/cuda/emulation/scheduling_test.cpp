// How blocks and threads are run: on any number of host threads, in either order, with fresh
// memory.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include <gtest/gtest.h>

#include "cuda/emulation/sanitizers.h"
#include "cuda/launch.h"
#include "cuda/matmul_ladder.h"
#include "tests/cuda/device_array.h"
#include "tests/cuda/emulation/fault_testing.h"

namespace mutilde::emulation {
namespace {

using cuda::DeviceArray;
using cuda::dynamic_shared;
using cuda::launch;
using cuda::numbers;

/// Everything at once: static and dynamic shared memory, barriers, shuffles.
__global__ void mixture(const float* x, float* out, int n) {
  __shared__ float sums[8];
  float* copy = dynamic_shared<float>();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  copy[threadIdx.x] = i < n ? x[i] : 0.0F;
  float sum = copy[threadIdx.x];
  for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_xor_sync(0xffffffff, sum, delta);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  float total = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += sums[warp];
  if (i < n) out[i] = total - copy[blockDim.x - 1 - threadIdx.x];
}

TEST(Scheduling, ResultsAreTheSameForAnyNumberOfHostThreadsAndAnyOrder) {
  const OptionsScope scope;
  const int n = 10001, threads = 160, blocks = (n + threads - 1) / threads;
  const DeviceArray<float> x(numbers<float>(n));
  std::vector<float> first;
  for (const Order order : {Order::kForward, Order::kReverse}) {
    for (const int host_threads : {1, 2, 3, 8, 100}) {
      options().order = order;
      options().host_threads = host_threads;
      DeviceArray<float> out(n);
      launch<mixture>({.grid = blocks, .block = threads, .shared_bytes = threads * sizeof(float)},
                      x.data(), out.data(), n);
      if (first.empty()) first = out.to_host();
      EXPECT_EQ(out.to_host(), first);
    }
  }
  for (const float value : first) ASSERT_FALSE(std::isnan(value));
}

TEST(Scheduling, MatrixProductsAreTheSameForAnyNumberOfHostThreadsAndAnyOrder) {
  const OptionsScope scope;
  const int M = 130, N = 70, K = 45;
  const DeviceArray<__nv_bfloat16> a(numbers<__nv_bfloat16>(M * K, 1));
  const DeviceArray<__nv_bfloat16> b(numbers<__nv_bfloat16>(K * N, 2));
  std::vector<float> first;
  for (const Order order : {Order::kForward, Order::kReverse}) {
    for (const int host_threads : {1, 2, 5}) {
      options().order = order;
      options().host_threads = host_threads;
      DeviceArray<float> out(M * N);
      cuda::matmul_wmma(a.data(), b.data(), out.data(), M, N, K, nullptr);
      if (first.empty()) first = out.to_host();
      EXPECT_EQ(out.to_host(), first);
    }
  }
}

/// Lacks a barrier: a thread may read what its neighbour has not written yet.
__global__ void reads_too_early(float* out) {
  float* shared = dynamic_shared<float>();
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}
__global__ void reads_too_early_from_below(float* out) {
  float* shared = dynamic_shared<float>();
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = shared[threadIdx.x == 0 ? 0 : threadIdx.x - 1];
}

int count_nan(const std::vector<float>& values) {
  int count = 0;
  for (const float value : values) count += std::isnan(value) ? 1 : 0;
  return count;
}

TEST(Scheduling, AMissingBarrierShowsInOneOfTheTwoOrders) {
  const OptionsScope scope;
  DeviceArray<float> above(64), below(64);
  int nan_above[2] = {}, nan_below[2] = {};
  for (const Order order : {Order::kForward, Order::kReverse}) {
    options().order = order;
    launch<reads_too_early>({.grid = 1, .block = 64, .shared_bytes = 256}, above.data());
    launch<reads_too_early_from_below>({.grid = 1, .block = 64, .shared_bytes = 256}, below.data());
    nan_above[static_cast<int>(order)] = count_nan(above.to_host());
    nan_below[static_cast<int>(order)] = count_nan(below.to_host());
  }
  EXPECT_EQ(nan_above[0], 63);  // all but the last, whose neighbour is thread 0
  EXPECT_EQ(nan_below[0], 0);   // forward order hides it
  EXPECT_EQ(nan_below[1], 63);
  EXPECT_LE(nan_above[1], 1);
}

__global__ void read_then_write(float* out) {
  float* shared = dynamic_shared<float>();
  out[blockIdx.x] = shared[0];
  shared[0] = 1.0F;
}

TEST(Memory, DynamicSharedMemoryIsFreshForEachBlock) {
  const OptionsScope scope;
  options().host_threads = 1;
  DeviceArray<float> out(5);
  launch<read_then_write>({.grid = 5, .block = 1, .shared_bytes = sizeof(float)}, out.data());
  EXPECT_EQ(count_nan(out.to_host()), 5);
}

TEST(Memory, FreshDeviceMemoryIsNaN) {
  const DeviceArray<float> floats(3);
  EXPECT_EQ(count_nan(floats.to_host()), 3);
  const DeviceArray<int> integers(2);
  EXPECT_EQ(integers.to_host(), (std::vector<int>{-1, -1}));
}

/// A block keeps its static shared array although others run meanwhile.
__global__ void holds_its_number(int* mismatches) {
  __shared__ unsigned number;
  if (threadIdx.x == 0) number = blockIdx.x;
  for (int i = 0; i < 20; ++i) {
    __syncthreads();
    if (number != blockIdx.x) atomicAdd(mismatches, 1);
  }
}

TEST(Memory, StaticSharedMemoryIsOfOneBlock) {
  const OptionsScope scope;
  options().host_threads = 8;
  const DeviceArray<int> mismatches(std::vector<int>{0});
  launch<holds_its_number>({.grid = 400, .block = 20}, mismatches.data());
  EXPECT_EQ(mismatches.to_host()[0], 0);
}

__global__ void deep_stack(int* out, int depth) {
  volatile char array[64 * 1024];
  for (int i = 0; i < 64 * 1024; i += 512) array[i] = static_cast<char>(i / 512 + depth);
  __syncthreads();
  out[threadIdx.x] = array[512 * 5];
}

TEST(Memory, AThreadMayHaveLocalArrays) {
  DeviceArray<int> out(40);
  launch<deep_stack>({.grid = 1, .block = 40}, out.data(), 2);
  EXPECT_EQ(out.to_host(), std::vector<int>(40, 7));
}

/// Every thread's stack is where the first one's was: the kernel ran as a loop, on one fiber.
__global__ void stack_address(uintptr_t* out, bool synchronise) {
  volatile int local = 0;
  if (synchronise) __syncthreads();
  out[threadIdx.x] = reinterpret_cast<uintptr_t>(&local);
}

TEST(Scheduling, OnlyThreadsThatWaitTakeAStackEach) {
  DeviceArray<uintptr_t> out(100);
  const auto distinct = [&](bool synchronise) {
    launch<stack_address>({.grid = 1, .block = 100}, out.data(), synchronise);
    std::vector<uintptr_t> addresses = out.to_host();
    std::sort(addresses.begin(), addresses.end());
    return std::unique(addresses.begin(), addresses.end()) - addresses.begin();
  };
  EXPECT_EQ(distinct(true), 100);
  if (kAsan) return;              // it keeps locals elsewhere
  EXPECT_LE(distinct(false), 4);  // at most one a warp
}

}  // namespace
}  // namespace mutilde::emulation

// These tests change the number of threads. libomp keeps what it had made for another team and
// reaches it in a way that the leak sanitizer does not follow.
extern "C" const char* __lsan_default_suppressions();                           // NOLINT
extern "C" const char* __lsan_default_suppressions() { return "leak:libomp"; }  // NOLINT
