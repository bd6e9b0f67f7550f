// What the emulation of cuda/mma_instructions.h finds.
#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cuda/mma_instructions.h"
#include "tests/cuda/device_array.h"
#include "tests/cuda/emulation/fault_testing.h"

namespace mutilde::emulation {
namespace {

using cuda::DeviceArray;
using cuda::launch;
using testing::AllOf;
using testing::HasSubstr;

/// Copies x and reads the copy, after it waited or not; leaves a copy behind that nobody waits for.
__global__ void copies(const float* x, bool waits, float* out) {
  auto* shared = cuda::dynamic_shared<float>();
  cuda::copy_async<16>(shared, x, true);
  cuda::commit_copies();
  if (waits) cuda::wait_for_copies<0>();
  *out = *shared;
  cuda::copy_async<16>(shared, x, true);
  cuda::commit_copies();
}

TEST(MmaFault, ACopyThatIsNotWaitedForIsNotThere) {
  const DeviceArray<float> x(std::vector<float>(4, 7));
  const DeviceArray<float> out(1);
  for (const bool waits : {false, true, false}) {
    launch<copies>({.grid = 1, .block = 1, .shared_bytes = 16}, x.data(), waits, out.data());
    if (waits) {
      EXPECT_EQ(out.to_host()[0], 7);
    } else {
      EXPECT_TRUE(std::isnan(out.to_host()[0]));
    }
  }
}

/// A thread overwrites what another reads, after it waited for that or not.
__global__ void overwrites(const float* x, bool waits, float* out) {
  auto* shared = cuda::dynamic_shared<float>();
  if (threadIdx.x < 4) shared[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 32) out[0] = shared[0];
  if (waits) __syncthreads();
  if (threadIdx.x == 63) cuda::copy_async<16>(shared, x, true);
  cuda::commit_copies();
  cuda::wait_for_copies<0>();
}

TEST(MmaFault, ACopyThatStartsTooEarlyOverwritesWhatIsReadLater) {
  const OptionsScope scope;
  options().order = Order::kReverse;
  const DeviceArray<float> x(std::vector<float>(4, 7));
  const DeviceArray<float> out(1);
  for (const bool waits : {false, true}) {
    launch<overwrites>({.grid = 1, .block = 64, .shared_bytes = 16}, x.data(), waits, out.data());
    EXPECT_EQ(out.to_host()[0], waits ? 1 : 7);
  }
}

__global__ void copies_to(int offset, const float* x) {
  cuda::copy_async<16>(cuda::dynamic_shared<float>() + offset, x, true);
}

__global__ void loads_from(int offset) {
  uint32_t matrices[4];
  cuda::load_matrices(matrices, cuda::dynamic_shared<__nv_bfloat16>() + offset);
}

TEST(MmaFault, AddressesMustBeAligned) {
  const DeviceArray<float> x(8);
  const auto copy = [&](int to, int from) {
    return fault_of([&] {
      launch<copies_to>({.grid = 1, .block = 1, .shared_bytes = 64}, to, x.data() + from);
    });
  };
  EXPECT_EQ(copy(4, 0), "no fault");
  EXPECT_THAT(copy(1, 0), AllOf(HasSubstr("copy_async at mma_fault_test.cpp"),
                                HasSubstr("not aligned to 16 bytes")));
  EXPECT_THAT(copy(0, 2), HasSubstr("not aligned to 16 bytes"));
  const auto load = [](unsigned lanes, int offset) {
    return fault_of(
        [&] { launch<loads_from>({.grid = 1, .block = lanes, .shared_bytes = 64}, offset); });
  };
  EXPECT_EQ(load(32, 8), "no fault");
  EXPECT_THAT(load(32, 4), AllOf(HasSubstr("load_matrices at mma_fault_test.cpp"),
                                 HasSubstr("not aligned to 16 bytes")));
  EXPECT_THAT(load(31, 0), HasSubstr("load_matrices"));  // not without the whole warp
}

}  // namespace
}  // namespace mutilde::emulation
