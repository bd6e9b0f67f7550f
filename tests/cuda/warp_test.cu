// Shuffles and votes, each against its definition.
#include <cmath>

#include <gtest/gtest.h>

#include "cuda/launch.h"
#include "tests/cuda/device_array.h"

namespace mutilde::cuda {
namespace {

constexpr unsigned kAll = 0xffffffff;

template <class T>
__global__ void four_shuffles(T* out, int delta, int width) {
  const int i = threadIdx.x;
  const T value = static_cast<T>(100 + i) / 4;
  out[i] = __shfl_sync(kAll, value, delta, width);
  out[64 + i] = __shfl_up_sync(kAll, value, delta, width);
  out[128 + i] = __shfl_down_sync(kAll, value, delta, width);
  out[192 + i] = __shfl_xor_sync(kAll, value, delta, width);
}

template <class T>
void check_shuffles() {
  for (const int width : {1, 2, 8, 16, 32}) {
    for (const int delta : {0, 1, 3, 7, 16, 31}) {
      DeviceArray<T> out(256);
      launch<four_shuffles<T>>({.grid = 1, .block = 64}, out.data(), delta, width);
      const std::vector<T> host = out.to_host();
      for (int i = 0; i < 64; ++i) {
        const int warp = i / 32 * 32, lane = i % 32, first = lane / width * width;
        const auto value = [&](int l) { return static_cast<T>(100 + warp + l) / 4; };
        const int up = lane - delta, down = lane + delta, across = lane ^ delta;
        ASSERT_EQ(host[i], value(first + delta % width));
        ASSERT_EQ(host[64 + i], value(up >= first ? up : lane));
        ASSERT_EQ(host[128 + i], value(down < first + width ? down : lane));
        ASSERT_EQ(host[192 + i], value(across < first + width ? across : lane));
      }
    }
  }
}

TEST(Shuffle, MovesIntegersAsDefined) { check_shuffles<int>(); }
TEST(Shuffle, MovesFloatsAsDefined) { check_shuffles<float>(); }
TEST(Shuffle, MovesDoublesAsDefined) { check_shuffles<double>(); }
TEST(Shuffle, MovesLongIntegersAsDefined) { check_shuffles<long long>(); }

/// Each half warp shuffles by itself, in its own branch, a different number of times.
__global__ void shuffle_by_halves(int* out) {
  int value = threadIdx.x;
  if (threadIdx.x < 16) {
    value = __shfl_xor_sync(0x0000ffff, value, 1);
  } else {
    for (int i = 0; i < 3; ++i) value = __shfl_down_sync(0xffff0000, value, 1);
  }
  out[threadIdx.x] = value;
}

TEST(Shuffle, OfPartsOfAWarpAreIndependent) {
  DeviceArray<int> out(32);
  launch<shuffle_by_halves>({.grid = 1, .block = 32}, out.data());
  const std::vector<int> host = out.to_host();
  for (int i = 0; i < 32; ++i) EXPECT_EQ(host[i], i < 16 ? (i ^ 1) : std::min(i + 3, 31));
}

/// Sum of a block: within warps by shuffles, then the warps' sums by the first warp.
__global__ void sum_by_warps(const double* x, double* out, int n) {
  __shared__ double sums[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  double sum = i < n ? x[i] : 0.0;
  for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_down_sync(kAll, sum, delta);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  if (warp > 0) return;
  sum = lane < warps ? sums[lane] : 0.0;
  for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_down_sync(kAll, sum, delta);
  if (lane == 0) out[blockIdx.x] = sum;
}

TEST(Shuffle, ReducesAnArrayOfAnyLength) {
  for (const int n : {1, 31, 500, 1025, 3000}) {
    for (const int threads : {32, 96, 1024}) {
      const int blocks = (n + threads - 1) / threads;
      const std::vector<double> x = numbers<double>(n);
      const DeviceArray<double> in(x);
      DeviceArray<double> out(blocks);
      launch<sum_by_warps>({.grid = blocks, .block = threads}, in.data(), out.data(), n);
      double sum = 0, expected = 0;
      for (const double part : out.to_host()) sum += part;
      for (const double value : x) expected += value;
      ASSERT_NEAR(sum, expected, 1e-11);  // 3000 additions of sums below 3000, 2^-53 each
    }
  }
}

__global__ void vote(const int* predicate, unsigned* out) {
  const int i = threadIdx.x;
  out[i] = __ballot_sync(kAll, predicate[i]);
  out[32 + i] = __any_sync(kAll, predicate[i]);
  out[64 + i] = __all_sync(kAll, predicate[i]);
}

TEST(Vote, CountsThePredicatesOfAllLanes) {
  for (const unsigned ballot : {0U, kAll, 0x80000001U, 0x12345678U}) {
    std::vector<int> predicate(32);
    for (int i = 0; i < 32; ++i) predicate[i] = static_cast<int>(ballot >> i & 1) * (i + 1);
    const DeviceArray<int> in(predicate);
    DeviceArray<unsigned> out(96);
    launch<vote>({.grid = 1, .block = 32}, in.data(), out.data());
    const std::vector<unsigned> host = out.to_host();
    for (int i = 0; i < 32; ++i) {
      EXPECT_EQ(host[i], ballot);
      EXPECT_EQ(host[32 + i] != 0, ballot != 0);
      EXPECT_EQ(host[64 + i] != 0, ballot == kAll);
    }
  }
}

/// A vote and __syncwarp pass over lanes that have returned; the shared array needs the latter.
__global__ void vote_of_the_living(unsigned* out) {
  __shared__ unsigned seen[32];
  if (threadIdx.x >= 20) return;
  seen[threadIdx.x] = __ballot_sync(0x000fffff, threadIdx.x % 2);
  __syncwarp(0x000fffff);
  out[threadIdx.x] = seen[19 - threadIdx.x];
}

TEST(Vote, WorksInAWarpWhoseOtherLanesHaveReturned) {
  DeviceArray<unsigned> out(20);
  launch<vote_of_the_living>({.grid = 1, .block = 32}, out.data());
  for (const unsigned ballot : out.to_host()) EXPECT_EQ(ballot, 0x000aaaaaU);
}

__global__ void active_mask(unsigned* out) {
  if (threadIdx.x % 3 == 0) return;
  out[threadIdx.x] = __activemask();
}

TEST(ActiveMask, NamesTheCallerAndNoneThatHasReturned) {
  DeviceArray<unsigned> out(32);
  check(cudaMemset(out.data(), 0, 32 * sizeof(unsigned)), "cudaMemset");
  launch<active_mask>({.grid = 1, .block = 32}, out.data());
  const std::vector<unsigned> host = out.to_host();
  for (int i = 0; i < 32; ++i) {
    if (i % 3 == 0) continue;
    EXPECT_TRUE(host[i] >> i & 1) << i;
    EXPECT_EQ(host[i] & 0x49249249U, 0U) << i;
  }
}

}  // namespace
}  // namespace mutilde::cuda
