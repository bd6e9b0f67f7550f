// Memory, streams, events and errors of the host's side.
#include <gtest/gtest.h>

#include "cuda/launch.h"
#include "tests/cuda/device_array.h"

namespace mutilde::cuda {
namespace {

__global__ void add_one(int* x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) ++x[i];
}

TEST(RuntimeApi, AStreamRunsCopiesAndKernelsInOrder) {
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  DeviceArray<int> x(100);
  std::vector<int> host(100, 7);
  ASSERT_EQ(cudaMemsetAsync(x.data(), 0, 100 * sizeof(int), stream), cudaSuccess);
  for (int i = 0; i < 3; ++i)
    launch<add_one>({.grid = 4, .block = 32, .stream = stream}, x.data(), 100);
  ASSERT_EQ(
      cudaMemcpyAsync(host.data(), x.data(), 100 * sizeof(int), cudaMemcpyDeviceToHost, stream),
      cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(host, std::vector<int>(100, 3));
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

TEST(RuntimeApi, EventsMeasureTimeThatPasses) {
  cudaEvent_t start = nullptr, end = nullptr;
  ASSERT_EQ(cudaEventCreate(&start), cudaSuccess);
  ASSERT_EQ(cudaEventCreate(&end), cudaSuccess);
  DeviceArray<int> x(100);
  ASSERT_EQ(cudaEventRecord(start, nullptr), cudaSuccess);
  launch<add_one>({.grid = 4, .block = 32}, x.data(), 100);
  ASSERT_EQ(cudaEventRecord(end, nullptr), cudaSuccess);
  ASSERT_EQ(cudaEventSynchronize(end), cudaSuccess);
  float milliseconds = -1;
  ASSERT_EQ(cudaEventElapsedTime(&milliseconds, start, end), cudaSuccess);
  EXPECT_GE(milliseconds, 0.0F);
  EXPECT_EQ(cudaEventDestroy(start), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(end), cudaSuccess);
}

TEST(RuntimeApi, AnErrorIsRememberedOnce) {
  EXPECT_EQ(cudaSetDevice(1000), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaPeekAtLastError(), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_STREQ(cudaGetErrorString(cudaErrorInvalidDevice), "invalid device ordinal");
}

TEST(RuntimeApi, NoBytesAreANullPointer) {
  int* x = reinterpret_cast<int*>(1);
  EXPECT_EQ(cudaMalloc(&x, 0), cudaSuccess);
  EXPECT_EQ(x, nullptr);
  EXPECT_EQ(cudaFree(x), cudaSuccess);
}

}  // namespace
}  // namespace mutilde::cuda
