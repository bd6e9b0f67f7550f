// Out-of-bounds and misaligned accesses, which end the program: built with the sanitizers only.
#include <gtest/gtest.h>

#include "core/tensor.h"
#include "cuda/devices.h"
#include "cuda/launch.h"
#include "tests/cuda/device_array.h"

namespace mutilde::emulation {
namespace {

using cuda::DeviceArray;
using cuda::dynamic_shared;
using cuda::launch;

class MemoryFault : public testing::Test {
 protected:
  // Other threads exist (OpenMP's): a forked test must not inherit their locks.
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

__global__ void write_at(float* x, int index) {
  if (threadIdx.x == 3) x[index] = 1.0F;
}

TEST_F(MemoryFault, GlobalMemoryOneElementTooFar) {
  const DeviceArray<float> x(100);
  EXPECT_DEATH(launch<write_at>({.grid = 1, .block = 8}, x.data(), 100),
               "heap-buffer-overflow(.|\n)*write_at(.|\n)*emulation: in .*write_at: block "
               "\\(0,0,0\\), thread \\(3,0,0\\)");
}

TEST_F(MemoryFault, GlobalMemoryThatWasFreed) {
  float* data = nullptr;
  cuda::check(cudaMalloc(&data, 400), "cudaMalloc");
  cudaFree(data);
  EXPECT_DEATH(launch<write_at>({.grid = 1, .block = 8}, data, 5), "heap-use-after-free");
}

TEST_F(MemoryFault, ATensorThatIsOneElementTooShort) {
  use_cuda();
  const Tensor x = Tensor::zeros({100}, DType::kFloat32, Device::cuda());
  EXPECT_DEATH(backend(Device::cuda()).fill(1, View{x.raw(), DType::kFloat32, Shape{101}}),
               "heap-buffer-overflow(.|\n)*Fill<float>(.|\n)*emulation: in .*for_each.*: block "
               "\\(0,0,0\\), thread \\(100,0,0\\)");
}

__global__ void write_dynamic(int index) {
  char* shared = dynamic_shared<char>();
  shared[threadIdx.x] = 0;
  __syncthreads();
  if (threadIdx.x == 2) shared[index] = 1;
}

TEST_F(MemoryFault, DynamicSharedMemoryOneByteTooFar) {
  const auto run = [](int index) {
    launch<write_dynamic>({.grid = {1, 2}, .block = 4, .shared_bytes = 333}, index);
  };
  run(332);
  EXPECT_DEATH(run(333),
               "heap-buffer-overflow(.|\n)*write_dynamic: block \\(0,.,0\\), thread "
               "\\(2,0,0\\)");
}

__global__ void write_static(int row, int column, float* out) {
  __shared__ float tile[4][8];
  tile[threadIdx.x][0] = 0;
  __syncthreads();
  if (threadIdx.x == 1) tile[row][column] = 1.0F;
  out[threadIdx.x] = tile[threadIdx.x][0];
}

TEST_F(MemoryFault, StaticSharedMemoryByItsIndexOnEachAxis) {
  const DeviceArray<float> out(4);
  const auto run = [&](int row, int column) {
    launch<write_static>({.grid = 1, .block = 4}, row, column, out.data());
  };
  run(3, 7);
  EXPECT_DEATH(run(4, 0), "index 4 out of bounds for type 'float ?\\[4\\]\\[8\\]'");
  // Within the array, but in the next row.
  EXPECT_DEATH(run(0, 8), "index 8 out of bounds for type 'float ?\\[8\\]'");
}

// By its members: clang's sanitizer does not look at a copy of the whole.
__global__ void load_four(const float* x, float4* out) {
  const auto* four = reinterpret_cast<const float4*>(x);
  *out = make_float4(four->x, four->y, four->z, four->w);
}

TEST_F(MemoryFault, AMisalignedVector) {
  const DeviceArray<float> x(100);
  DeviceArray<float4> out(1);
  launch<load_four>({.grid = 1, .block = 1}, x.data() + 4, out.data());
  EXPECT_DEATH(launch<load_four>({.grid = 1, .block = 1}, x.data() + 1, out.data()),
               "misaligned address(.|\n)*float4");
}

}  // namespace
}  // namespace mutilde::emulation
