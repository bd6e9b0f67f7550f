// Faults planted in kernels: each is found, and the message says where.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mma.h>

#include "cuda/launch.h"
#include "tests/cuda/device_array.h"
#include "tests/cuda/emulation/fault_testing.h"

namespace mutilde::emulation {
namespace {

using cuda::dynamic_shared;
using cuda::launch;
using testing::AllOf;
using testing::HasSubstr;

// ---- Barriers

__global__ void returns_before_the_barrier(int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  __syncthreads();
}

TEST(BarrierFault, AThreadThatHasReturnedIsNamed) {
  const std::string fault =
      fault_of([] { launch<returns_before_the_barrier>({.grid = 4, .block = 64}, 150); });
  EXPECT_THAT(fault, AllOf(HasSubstr("returns_before_the_barrier: block (2,0,0), thread (0,0,0)"),
                           HasSubstr("waits at __syncthreads(), fault_test.cpp:"),
                           HasSubstr("for thread (22,0,0), which has returned")));
}

__global__ void two_barriers() {
  if (threadIdx.y == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

TEST(BarrierFault, TwoBarriersInTwoBranchesAreNotOne) {
  EXPECT_THAT(fault_of([] {
                launch<two_barriers>({.grid = 1, .block = {8, 2}});
              }),
              HasSubstr("for thread (0,1,0), which waits at __syncthreads(), fault_test.cpp:"));
}

TEST(BarrierFault, OutsideOfAKernelIsAnError) {
  EXPECT_THROW(__syncthreads(), Error);
  EXPECT_THROW(__shfl_sync(0xffffffff, 1, 0), Error);
}

// ---- Shuffles

__global__ void shuffle_after_return(int n, int* out) {
  const int i = threadIdx.x;
  if (i >= n) return;
  out[i] = __shfl_down_sync(0xffffffff, i, 1);
}

TEST(ShuffleFault, ALaneThatHasReturnedIsNamed) {
  cuda::DeviceArray<int> out(64);
  const std::string fault =
      fault_of([&] { launch<shuffle_after_return>({.grid = 1, .block = 64}, 40, out.data()); });
  EXPECT_THAT(fault, AllOf(HasSubstr("shuffle_after_return: block (0,0,0), thread (32,0,0)"),
                           HasSubstr("waits in __shfl_down_sync(mask 0xffffffff), fault_test.cpp:"),
                           HasSubstr("for lane 8 (thread (40,0,0)), which has returned")));
}

TEST(ShuffleFault, ALaneThatTheBlockDoesNotHaveIsNamed) {
  cuda::DeviceArray<int> out(48);
  EXPECT_THAT(
      fault_of([&] { launch<shuffle_after_return>({.grid = 1, .block = 48}, 48, out.data()); }),
      HasSubstr("for lane 16, which the block does not have"));
}

__global__ void shuffle_in_a_branch() {
  if (threadIdx.x < 16) __shfl_xor_sync(0xffffffff, 1, 1);
  __syncthreads();
}

TEST(ShuffleFault, ALaneThatWentToABarrierIsNamed) {
  EXPECT_THAT(fault_of([] { launch<shuffle_in_a_branch>({.grid = 1, .block = 32}); }),
              HasSubstr("for lane 16 (thread (16,0,0)), which waits at __syncthreads()"));
}

__global__ void shuffle_with_two_masks() {
  __shfl_sync(threadIdx.x == 3 ? 0x0000ffff : 0xffffffff, 1, 0);
}

TEST(ShuffleFault, LanesMustAgreeOnTheMask) {
  EXPECT_THAT(
      fault_of([] { launch<shuffle_with_two_masks>({.grid = 1, .block = 32}); }),
      HasSubstr("for lane 3 (thread (3,0,0)), which waits in __shfl_sync(mask 0x0000ffff)"));
}

__global__ void shuffle_without_oneself() { __shfl_sync(0x0000fffe, 1, 1); }

TEST(ShuffleFault, TheMaskMustNameTheCaller) {
  EXPECT_THAT(fault_of([] { launch<shuffle_without_oneself>({.grid = 1, .block = 16}); }),
              HasSubstr("thread (0,0,0): __shfl_sync(mask 0x0000fffe) at fault_test.cpp:"));
}

__global__ void shuffle_with_nobody() { __shfl_sync(0, 1, 1); }

TEST(ShuffleFault, TheMaskMustNameSomebody) {
  EXPECT_THAT(fault_of([] { launch<shuffle_with_nobody>({.grid = 1, .block = 32}); }),
              HasSubstr("the mask does not name the calling lane 0"));
}

__global__ void shuffle_of_odd_width() { __shfl_down_sync(0xffffffff, 1, 1, 12); }

TEST(ShuffleFault, TheWidthMustBeAPowerOfTwo) {
  EXPECT_THAT(fault_of([] { launch<shuffle_of_odd_width>({.grid = 1, .block = 32}); }),
              HasSubstr("width 12 is no power of two"));
}

__global__ void shuffle_from_outside(float* out) {
  if (threadIdx.x >= 16) return;
  out[threadIdx.x] = __shfl_sync(0x0000ffff, 1.0F, 20);
}

TEST(ShuffleFault, AValueFromALaneOutsideOfTheMaskIsANaN) {
  cuda::DeviceArray<float> out(16);
  launch<shuffle_from_outside>({.grid = 1, .block = 32}, out.data());
  for (const float value : out.to_host()) EXPECT_TRUE(std::isnan(value));
}

// ---- Votes

__global__ void vote_in_a_branch() {
  if (threadIdx.x < 8) {
    __any_sync(0xffffffff, 1);
  } else {
    __syncwarp();
  }
}

TEST(VoteFault, ALaneThatNeverComesIsNamed) {
  EXPECT_THAT(fault_of([] { launch<vote_in_a_branch>({.grid = 1, .block = 32}); }),
              HasSubstr("for lane 8 (thread (8,0,0)), which waits in __syncwarp(mask 0xffffffff)"));
}

// ---- Tensor cores

namespace wmma = nvcuda::wmma;

__global__ void load_fragment(const __nv_bfloat16* matrix, unsigned leading) {
  wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> fragment;
  wmma::load_matrix_sync(fragment, matrix, leading);
}

TEST(WmmaFault, AMatrixMustBeAligned) {
  const cuda::DeviceArray<__nv_bfloat16> matrix(400);
  EXPECT_THAT(
      fault_of([&] { launch<load_fragment>({.grid = 1, .block = 32}, matrix.data() + 8, 16U); }),
      HasSubstr(
          "load_fragment: block (0,0,0), thread (0,0,0): load_matrix_sync at fault_test.cpp"));
  EXPECT_THAT(
      fault_of([&] { launch<load_fragment>({.grid = 1, .block = 32}, matrix.data(), 20U); }),
      HasSubstr("a leading dimension of 20 is no multiple of 8"));
}

TEST(WmmaFault, PartOfAWarpIsNotEnough) {
  const cuda::DeviceArray<__nv_bfloat16> matrix(400);
  EXPECT_THAT(
      fault_of([&] { launch<load_fragment>({.grid = 1, .block = 16}, matrix.data(), 16U); }),
      HasSubstr("for lane 16, which the block does not have"));
}

// ---- Launches

__global__ void nothing() {}

TEST(LaunchFault, LimitsOfTheGridAndTheBlock) {
  const auto fault = [](dim3 grid, dim3 block) {
    return fault_of([&] { launch<nothing>({.grid = grid, .block = block}); });
  };
  EXPECT_THAT(fault(0, 32), AllOf(HasSubstr("nothing, launched at fault_test.cpp:"),
                                  HasSubstr("the grid is (0,1,1)")));
  EXPECT_THAT(fault({1, 65536}, 32), HasSubstr("the grid is (1,65536,1)"));
  EXPECT_THAT(fault({1, 1, 65536}, 32), HasSubstr("the grid is (1,1,65536)"));
  EXPECT_THAT(fault(1, 0), HasSubstr("the block is (0,1,1)"));
  EXPECT_THAT(fault(1, 1025), HasSubstr("the block is (1025,1,1)"));
  EXPECT_THAT(fault(1, {1, 1, 65}), HasSubstr("the block is (1,1,65)"));
  EXPECT_THAT(fault(1, {32, 33}), HasSubstr("(32,33,1) = 1056 threads, the limit is 1024"));
  EXPECT_EQ(fault({1, 65535}, 1), "no fault");
  EXPECT_EQ(fault(1, {16, 1, 64}), "no fault");
}

TEST(LaunchFault, MoreSharedMemoryThanTheDeviceHas) {
  EXPECT_THAT(
      fault_of([] { launch<nothing>({.grid = 1, .block = 1, .shared_bytes = 99 * 1024 + 1}); }),
      HasSubstr("dynamic shared memory is 101377 bytes, the limit is 101376"));
}

__global__ void wants_a_thousand_bytes() {
  struct Thousand {
    char bytes[1000];
  };
  dynamic_shared<Thousand>()->bytes[0] = 0;
}

TEST(LaunchFault, LessSharedMemoryThanTheKernelUses) {
  EXPECT_THAT(fault_of([] {
                launch<wants_a_thousand_bytes>({.grid = 1, .block = 1, .shared_bytes = 999});
              }),
              HasSubstr("wants 1000 bytes, the launch gave 999"));
}

__global__ void launches() { launch<nothing>({.grid = 1, .block = 1}); }

TEST(LaunchFault, AKernelCannotLaunchAnother) {
  EXPECT_THAT(fault_of([] { launch<launches>({.grid = 1, .block = 1}); }),
              HasSubstr("launched by a kernel"));
}

// ---- What happens around a fault

__global__ void some_blocks_fail(int first) {
  if (static_cast<int>(blockIdx.x) >= first && threadIdx.x == 5) return;
  __syncthreads();
}

TEST(KernelFault, IsTheFirstBlocksForAnyNumberOfHostThreads) {
  const OptionsScope scope;
  for (const int threads : {1, 2, 7}) {
    options().host_threads = threads;
    for (int i = 0; i < 20; ++i) {
      EXPECT_THAT(fault_of([] { launch<some_blocks_fail>({.grid = 50, .block = 32}, 13); }),
                  HasSubstr("block (13,0,0)"));
    }
  }
}

TEST(KernelFault, LeavesTheDeviceReadyForTheNextKernel) {
  for (int i = 0; i < 3; ++i) {
    EXPECT_NE(fault_of([] { launch<some_blocks_fail>({.grid = 4, .block = 96}, 0); }), "no fault");
    EXPECT_EQ(fault_of([] { launch<some_blocks_fail>({.grid = 4, .block = 96}, 4); }), "no fault");
  }
}

template <class T>
__global__ void of_a_type(T) {
  if (threadIdx.x == 0) __syncthreads();
}

#ifdef __clang__  // clang 14 leaves the template's arguments out of the name
constexpr const char* kName = "of_a_type: block";
#else
constexpr const char* kName = "of_a_type<float>: block";
#endif

TEST(KernelFault, NamesTheInstanceOfATemplate) {
  EXPECT_THAT(fault_of([] { launch<of_a_type<float>>({.grid = 1, .block = 2}, 1.0F); }),
              HasSubstr(kName));
}

}  // namespace
}  // namespace mutilde::emulation
