// Atomic operations, from many blocks on one address.
#include <algorithm>

#include <gtest/gtest.h>

#include "cuda/launch.h"
#include "tests/cuda/device_array.h"

namespace mutilde::cuda {
namespace {

template <class T>
__global__ void count(T* total) {
  atomicAdd(total, T{1});
}

template <class T>
void check_count() {
  const DeviceArray<T> total(std::vector<T>{T{5}});
  launch<count<T>>({.grid = 300, .block = 50}, total.data());
  EXPECT_EQ(total.to_host()[0], T{15005});  // every partial sum is exact, in any order
}

TEST(AtomicAdd, LosesNothing) {
  check_count<int>();
  check_count<unsigned>();
  check_count<unsigned long long>();
  check_count<float>();
  check_count<double>();
}

__global__ void extremes(const int* x, int n, int* most, int* least) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  atomicMax(most, x[i]);
  atomicMin(least, x[i]);
}

TEST(AtomicMaxAndMin, FindTheExtremes) {
  std::vector<int> x(5003);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<int>(i * 7919 % 10007) - 5000;
  const DeviceArray<int> in(x), most(std::vector<int>{-100000}), least(std::vector<int>{100000});
  launch<extremes>({.grid = 80, .block = 64}, in.data(), 5003, most.data(), least.data());
  EXPECT_EQ(most.to_host()[0], *std::max_element(x.begin(), x.end()));
  EXPECT_EQ(least.to_host()[0], *std::min_element(x.begin(), x.end()));
}

/// The maximum of floats, which CUDA lacks, by compare and swap.
__global__ void float_max(const float* x, int n, float* most) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int* bits = reinterpret_cast<int*>(most);
  int found = *bits;
  while (__int_as_float(found) < x[i]) {
    const int before = atomicCAS(bits, found, __float_as_int(x[i]));
    if (before == found) break;
    found = before;
  }
}

TEST(AtomicCas, BuildsOtherAtomics) {
  const std::vector<float> x = numbers<float>(3001);
  const DeviceArray<float> in(x), most(std::vector<float>{-9.0F});
  launch<float_max>({.grid = 100, .block = 32}, in.data(), 3001, most.data());
  EXPECT_EQ(most.to_host()[0], *std::max_element(x.begin(), x.end()));
}

__global__ void take_a_ticket(unsigned* counter, unsigned* last, unsigned* taken) {
  const unsigned ticket = atomicAdd(counter, 1);
  taken[ticket] = 1;
  atomicExch(last, ticket);
}

TEST(AtomicAdd, ReturnsEachValueOnce) {
  const DeviceArray<unsigned> counter(std::vector<unsigned>{0}), last(std::vector<unsigned>{9999});
  const DeviceArray<unsigned> taken(std::vector<unsigned>(640, 0));
  launch<take_a_ticket>({.grid = 20, .block = 32}, counter.data(), last.data(), taken.data());
  EXPECT_EQ(taken.to_host(), std::vector<unsigned>(640, 1));
  EXPECT_LT(last.to_host()[0], 640U);
}

}  // namespace
}  // namespace mutilde::cuda
