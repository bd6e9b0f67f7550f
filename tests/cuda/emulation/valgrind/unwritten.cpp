// For run.sh: kernels that read memory which they have written, or not.
//   unwritten KERNEL COUNT    writes the first COUNT of the 64 numbers that it reads
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "cuda/emulation/sanitizers.h"
#include "tests/cuda/device_array.h"

namespace mutilde::emulation {
namespace {

constexpr int kThreads = 64;

/// Counts a block's positive numbers, each written by another thread than reads it.
__global__ void shared_numbers(int written, int* positive) {
  auto* numbers = cuda::dynamic_shared<float>();
  if (static_cast<int>(threadIdx.x) < written) numbers[threadIdx.x] = 1;
  __syncthreads();
  // A branch: valgrind follows what is copied or computed, and reports what something depends on.
  if (numbers[kThreads - 1 - threadIdx.x] > 0) atomicAdd(positive, 1);
}

__global__ void fill(int written, float* numbers) {
  if (static_cast<int>(threadIdx.x) < written) numbers[threadIdx.x] = 1;
}

__global__ void device_numbers(const float* numbers, int* positive) {
  if (numbers[threadIdx.x] > 0) atomicAdd(positive, 1);
}

int run(std::string_view kernel, int written) {
  const cuda::DeviceArray<int> positive(std::vector<int>{0});
  if (kernel == "shared_numbers") {
    cuda::launch<shared_numbers>(
        {.grid = 1, .block = kThreads, .shared_bytes = kThreads * sizeof(float)}, written,
        positive.data());
  } else {
    const cuda::DeviceArray<float> numbers(kThreads);
    cuda::launch<fill>({.grid = 1, .block = kThreads}, written, numbers.data());
    cuda::launch<device_numbers>({.grid = 1, .block = kThreads}, numbers.data(), positive.data());
  }
  std::printf("%d\n", positive.to_host()[0]);
  return 0;
}

}  // namespace
}  // namespace mutilde::emulation

int main(int argc, char** argv) {
#ifndef MUTILDE_VALGRIND
  std::puts("built without valgrind's headers");
  return 77;
#endif
  return argc == 3 ? mutilde::emulation::run(argv[1], std::atoi(argv[2])) : 2;
}
