// Launches and copies that are collected and started at once.
#include <cstdlib>

#include <gtest/gtest.h>

#include "cuda/graph.h"
#include "cuda/launch.h"
#include "tests/cuda/device_array.h"

namespace mutilde::cuda {
namespace {

__global__ void multiply_add(int* x, int factor, int term) {
  x[threadIdx.x] = factor * x[threadIdx.x] + term;
}

constexpr size_t kSize = 64;

/// What graphs keep while they collect; no kernel here uses it.
CachingAllocator on_malloc() {
  return {[](size_t bytes) { return std::malloc(bytes); },
          [](void* data, size_t) { std::free(data); }};
}

// The first round collects nothing, the second makes the graph, the third and the fourth change its
// arguments, the last two are graphs of other shapes.
TEST(CudaGraph, RunsEachRoundWithItsOwnArguments) {
  CachingAllocator memory = on_malloc();
  Staging staging;
  Graph graph(memory, staging);
  DeviceArray<int> x(kSize);
  for (int round = 0; round < 6; ++round) {
    graph.run([&] {
      std::vector<int> host(kSize, round);
      staging.copy_to_device(host.data(), x.data(), kSize * sizeof(int));
      host.assign(kSize, -1);
      launch<multiply_add>({.grid = 1, .block = kSize}, x.data(), 10, round + 1);
      if (round >= 4) launch<multiply_add>({.grid = 1, .block = kSize}, x.data(), 2, round);
    });
    const int once = 10 * round + round + 1;
    EXPECT_EQ(x.to_host(), std::vector<int>(kSize, round >= 4 ? 2 * once + round : once)) << round;
  }
}

TEST(CudaGraph, AWorkThatThrowsStartsNothingAndTheNextOneRuns) {
  CachingAllocator memory = on_malloc();
  Staging staging;
  Graph graph(memory, staging);
  DeviceArray<int> x(std::vector<int>(kSize, 3));
  const auto add = [&] { launch<multiply_add>({.grid = 1, .block = kSize}, x.data(), 1, 1); };
  graph.run([] {});
  EXPECT_THROW(graph.run([&] {
    const int zero[kSize] = {};
    staging.copy_to_device(zero, x.data(), sizeof(zero));
    add();
    throw std::runtime_error("stop");
  }),
               std::runtime_error);
#ifdef __CUDACC__
  EXPECT_EQ(x.to_host(), std::vector<int>(kSize, 3));
  graph.run(add);
  EXPECT_EQ(x.to_host(), std::vector<int>(kSize, 4));
#else  // emulated, everything runs at once
  graph.run(add);
  EXPECT_EQ(x.to_host(), std::vector<int>(kSize, 2));
#endif
}

// What the work freed is free for the work alone: its launches are not started yet.
TEST(CudaGraph, MemoryThatIsCachedIsKeptUntilTheWorkIsStarted) {
  size_t room = size_t{100} << 20, given_back = 0;
  CachingAllocator memory(
      [&](size_t bytes) -> void* {
        if (bytes > room) return nullptr;
        room -= bytes;
        return std::malloc(bytes);
      },
      [&](void* data, size_t bytes) {
        room += bytes;
        given_back += bytes;
        std::free(data);
      });
  Staging staging;
  Graph graph(memory, staging);
  const size_t small = size_t{60} << 20, large = size_t{90} << 20;
  const auto use = [&](size_t bytes) { memory.release(memory.allocate(bytes), bytes); };
  graph.run([&] { use(small); });
  graph.run([&] { use(small); });
  EXPECT_THROW(graph.run([&] { use(large); }), OutOfMemoryError);
  EXPECT_EQ(given_back, 0U);
  use(large);  // not while collecting
  EXPECT_GE(given_back, small);
}

TEST(CudaGraph, ACopyToTheHostCannotBeCollected) {
  CachingAllocator memory = on_malloc();
  Staging staging;
  Graph graph(memory, staging);
  DeviceArray<int> x(std::vector<int>(kSize, 3));
  std::vector<int> host(kSize);
  graph.run([] {});
  EXPECT_THROW(graph.run([&] { staging.copy_to_host(x.data(), host.data(), kSize * sizeof(int)); }),
               Error);
  staging.copy_to_host(x.data(), host.data(), kSize * sizeof(int))();
  EXPECT_EQ(host, std::vector<int>(kSize, 3));
}

}  // namespace
}  // namespace mutilde::cuda
