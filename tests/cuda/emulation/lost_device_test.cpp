// A device that is lost within a run, as a kernel's fault leaves a GPU: what is said of it.
#include <cstdlib>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/ops/ops.h"
#include "cuda/devices.h"
#include "cuda/launch.h"
#include "tests/cuda/emulation/fault_testing.h"

namespace mutilde::emulation {
namespace {

using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;

__global__ void nothing() {}
void launch_nothing() { cuda::launch<nothing>({.grid = 2, .block = 32}); }

constexpr const char* kBefore =
    "an illegal memory access was encountered; a kernel that was launched before has failed: with "
    "CUDA_LAUNCH_BLOCKING=1 in the environment this message names it";

TEST(LostDevice, EachCallSaysThatAKernelBeforeItFailed) {
  const OptionsScope scope;
  use_cuda();
  Backend& gpu = backend(Device::cuda());
  const Tensor x = Tensor::zeros({2}, DType::kFloat32, Device::cuda());
  const Tensor host = Tensor::zeros({2});
  const auto copy = gpu.start_copy_to_host(x.raw(), host.raw(), x.bytes());
  options().launches_until_lost = 1;
  EXPECT_EQ(error_of(launch_nothing), "no error");
  EXPECT_THAT(error_of(launch_nothing),
              AllOf(HasSubstr("cuda: before the launch of "), HasSubstr("nothing at "),
                    HasSubstr("lost_device_test.cpp:"),
                    HasSubstr("(grid 2,1,1, block 32,1,1, 0 bytes"), EndsWith(kBefore)));
  EXPECT_EQ(error_of([&] { x.to(Device::cpu()); }),
            std::string("cuda: copy from the device: ") + kBefore);
  EXPECT_EQ(error_of([&] { gpu.copy_from_host(host.raw(), x.raw(), x.bytes()); }),
            std::string("cuda: copy to the device: ") + kBefore);
  EXPECT_EQ(error_of([&] { x.clone(); }), std::string("cudaMalloc: ") + kBefore);
  EXPECT_EQ(error_of([&] { gpu.synchronize(); }),
            std::string("cuda: waiting for the device: ") + kBefore);
  EXPECT_EQ(error_of(copy), std::string("cuda: copy from the device: ") + kBefore);
  cudaGetLastError();
}

TEST(LostDevice, WhereEachLaunchIsWaitedForTheErrorIsItsOwn) {
  const OptionsScope scope;
  options().launches_until_lost = 0;
  setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
  EXPECT_THAT(error_of(launch_nothing), EndsWith("an illegal memory access was encountered"));
  unsetenv("CUDA_LAUNCH_BLOCKING");
  cudaGetLastError();
}

TEST(LostDevice, AnErrorOfACallIsNoKernelsAndIsToldOnce) {
  cudaSetDevice(1000);
  EXPECT_THAT(error_of(launch_nothing),
              AllOf(HasSubstr("before the launch of "), EndsWith("invalid device ordinal")));
  EXPECT_EQ(error_of(launch_nothing), "no error");
  EXPECT_EQ(error_of([] { cuda::check(cudaSetDevice(1000), "cudaSetDevice"); }),
            "cudaSetDevice: invalid device ordinal");
  EXPECT_EQ(error_of(launch_nothing), "no error");
}

}  // namespace
}  // namespace mutilde::emulation
