// Hopper's instructions, emulated: what waits for what, and the faults.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cuda/hopper/wgmma.h"
#include "tests/cuda/device_array.h"
#include "tests/cuda/emulation/fault_testing.h"

namespace mutilde::emulation {
namespace {

using namespace cuda::hopper;
using cuda::DeviceArray;
using cuda::launch;
using testing::AllOf;
using testing::HasSubstr;

template <class E>
using Tile = Blocking<E, 1, 1>;
template <class E>
using Stage = typename Tile<E>::Stage;
constexpr size_t kBytes = sizeof(Stage<__half>) + kPattern;

template <class E>
Stage<E>& stage() {
  const auto bytes = reinterpret_cast<uintptr_t>(cuda::dynamic_shared<unsigned char>());
  return *reinterpret_cast<Stage<E>*>((bytes + kPattern - 1) / kPattern * kPattern);
}

/// One warp arrives; the other waits for `arrivals`, and then reads what the first wrote.
__global__ void hand_over(int arrivals, int* out) {
  auto* barrier = cuda::dynamic_shared<uint64_t>();
  int* number = reinterpret_cast<int*>(barrier + 1);
  if (threadIdx.x == 0) init_barrier(barrier, arrivals);
  __syncthreads();
  if (threadIdx.x < 32) {
    wait(barrier, 0);
    out[threadIdx.x] = *number;
  } else {
    if (threadIdx.x == 32) *number = 7;
    arrive(barrier);
  }
}

TEST(EmulatedHopper, AThreadWaitsForAllArrivals) {
  for (const Order order : {Order::kForward, Order::kReverse}) {
    const OptionsScope scope;
    options().order = order;
    DeviceArray<int> out(32);
    launch<hand_over>({.grid = 1, .block = 64, .shared_bytes = 16}, 32, out.data());
    EXPECT_EQ(out.to_host(), std::vector<int>(32, 7));
  }
}

TEST(EmulatedHopper, APhaseThatIsNeverOverIsAFault) {
  DeviceArray<int> out(32);
  const std::string fault = fault_of(
      [&] { launch<hand_over>({.grid = 1, .block = 64, .shared_bytes = 16}, 33, out.data()); });
  EXPECT_THAT(fault, AllOf(HasSubstr("hand_over: block (0,0,0), thread (0,0,0): waits in wait()"),
                           HasSubstr("hopper_test.cpp:"), HasSubstr("for what does not come")));
}

__global__ void arrives_twice() {
  auto* barrier = cuda::dynamic_shared<uint64_t>();
  init_barrier(barrier, 1);
  arrive_and_expect(barrier, 128);  // bytes that do not come: the phase is not over
  arrive(barrier);
}

TEST(EmulatedHopper, AnArrivalTooManyIsAFault) {
  EXPECT_THAT(fault_of([] { launch<arrives_twice>({.grid = 1, .block = 1, .shared_bytes = 8}); }),
              HasSubstr("more threads arrive at a barrier than the 1"));
}

/// A warpgroup's sums of 16 ones times ones, before and after it waits for them; meanwhile the factors
/// become zeros where `gives_back`.
template <class E>
__global__ void products(bool gives_back, float* out) {
  Stage<E>& tiles = stage<E>();
  uint64_t barrier;
  if (threadIdx.x == 0) init_barrier(&barrier, 1);
  for (int i = threadIdx.x; i < Tile<E>::kRows * kDepth; i += blockDim.x)
    tiles.a[i] = tiles.b[i] = 1.0F;
  __syncthreads();
  float sum[64] = {};
  multiply<E, false, false>(sum, descriptor<Layout::kAlongK>(tiles.a, 0, 0),
                            descriptor<Layout::kAlongK>(tiles.b, 0, 0));
  commit_products();
  out[threadIdx.x * 2] = sum[63];
  if (gives_back) tiles.a[threadIdx.x * 64] = 0.0F;
  __syncthreads();
  wait_for_products<0>();
  out[threadIdx.x * 2 + 1] = sum[63];
}

template <class E>
void check_products() {
  const OptionsScope scope;
  options().hopper = true;
  DeviceArray<float> out(256);
  launch<products<E>>({.grid = 1, .block = 128, .shared_bytes = kBytes}, false, out.data());
  for (size_t i = 0; i < 256; ++i) EXPECT_EQ(out.to_host()[i], i % 2 == 0 ? 0 : 16);
  launch<products<E>>({.grid = 1, .block = 128, .shared_bytes = kBytes}, true, out.data());
  EXPECT_NE(out.to_host()[1], 16);
}

TEST(EmulatedHopper, ProductsAreThereWhenTheyWereWaitedForAndReadTheirTilesUntilThen) {
  check_products<__nv_bfloat16>();
  check_products<__half>();
}

/// out: the tile of 8 rows of 64 that begins at (row, column), in the order of the shared memory.
__global__ void copy(const __grid_constant__ CUtensorMap matrix, int row, int column, float* out) {
  auto& tiles = stage<__nv_bfloat16>();
  auto* barrier = reinterpret_cast<uint64_t*>(tiles.b);
  if (threadIdx.x == 0) {
    init_barrier(barrier, 1);
    arrive_and_expect(barrier, kPattern);
    copy_tile(matrix, row, column, tiles.a, barrier);
  }
  __syncthreads();
  wait(barrier, 0);
  for (int i = threadIdx.x; i < 8 * 64; i += blockDim.x) out[i] = tiles.a[i];
}

// Piece p (8 numbers) of row r lies at p xor r; beyond the edges are zeros.
TEST(EmulatedHopper, TheCopyEngineSwizzlesAndFillsWithZeros) {
  constexpr int kMatrixRows = 10, kMatrixColumns = 72;
  std::vector<__nv_bfloat16> numbers;
  for (int i = 0; i < kMatrixRows * kMatrixColumns; ++i) numbers.push_back(float(i % 251));
  const DeviceArray<__nv_bfloat16> matrix(numbers);
  const CUtensorMap map =
      tensor_map<2>(matrix.data(), {kMatrixColumns, kMatrixRows}, {64, 8}, {1, 1});
  for (const auto& [first_row, first_column] : {std::pair{0, 0}, {-3, 8}, {5, 64}}) {
    DeviceArray<float> out(8 * 64);
    launch<copy>({.grid = 1, .block = 32, .shared_bytes = kBytes}, map, first_row, first_column,
                 out.data());
    const std::vector<float> tile = out.to_host();
    for (int r = 0; r < 8; ++r) {
      for (int c = 0; c < 64; ++c) {
        const int row = first_row + r, column = first_column + c;
        const bool inside = row >= 0 && row < kMatrixRows && column < kMatrixColumns;
        EXPECT_EQ(tile[r * 64 + (c / 8 ^ r) * 8 + c % 8],
                  inside ? float((row * kMatrixColumns + column) % 251) : 0)
            << row << "," << column;
      }
    }
  }
}

/// A product by descriptors in which some bits are flipped.
__global__ void multiply_by(uint64_t flipped_in_a, uint64_t flipped_in_b) {
  auto& tiles = stage<__half>();
  init_barrier(reinterpret_cast<uint64_t*>(tiles.b), 1);
  float sum[64] = {};
  multiply<__half, false, false>(sum, descriptor<Layout::kAlongK>(tiles.a, 0, 0) ^ flipped_in_a,
                                 descriptor<Layout::kAlongK>(tiles.b, 0, 0) ^ flipped_in_b);
}

TEST(EmulatedHopper, ADescriptorOfAnotherSwizzleIsAFault) {
  const auto fault = [](uint64_t a, uint64_t b) {
    return fault_of(
        [&] { launch<multiply_by>({.grid = 1, .block = 1, .shared_bytes = kBytes}, a, b); });
  };
  EXPECT_EQ(fault(0, 0), "no fault");
  // None, of 64 bytes, of 32 bytes; patterns that begin 1 row or 4 rows late.
  for (const uint64_t bits : {uint64_t{1} << 62, uint64_t{3} << 62, uint64_t{2} << 62,
                              uint64_t{1} << 49, uint64_t{4} << 49}) {
    for (const std::string& message : {fault(bits, 0), fault(0, bits)}) {
      EXPECT_THAT(message, AllOf(HasSubstr("multiply_by: block (0,0,0), thread (0,0,0)"),
                                 HasSubstr("not of a 128-byte swizzle from its beginning")))
          << std::hex << bits;
    }
  }
}

__global__ void copy_to(const __grid_constant__ CUtensorMap matrix, int offset) {
  auto& tiles = stage<__nv_bfloat16>();
  auto* barrier = reinterpret_cast<uint64_t*>(tiles.b);
  init_barrier(barrier, 1);
  arrive_and_expect(barrier, kPattern);
  copy_tile(matrix, 0, 0, tiles.a + offset, barrier);
}

TEST(EmulatedHopper, ATileThatIsNotAlignedToAPatternIsAFault) {
  const DeviceArray<__nv_bfloat16> matrix(std::vector<__nv_bfloat16>(64 * 8));
  const CUtensorMap map = tensor_map<2>(matrix.data(), {64, 8}, {64, 8}, {1, 1});
  const auto fault = [&](int offset) {
    return fault_of(
        [&] { launch<copy_to>({.grid = 1, .block = 1, .shared_bytes = kBytes}, map, offset); });
  };
  EXPECT_EQ(fault(kPattern / 2), "no fault");
  for (const int offset : {8, 64, kPattern / 4}) {  // a piece, a row, half of a pattern
    EXPECT_THAT(fault(offset), AllOf(HasSubstr("copy_to: block (0,0,0), thread (0,0,0)"),
                                     HasSubstr("not aligned to 1024 bytes")))
        << offset;
  }
}

TEST(EmulatedHopper, WhatTheCopyEngineCannotCopyIsRefused) {
  const DeviceArray<__nv_bfloat16> array(1024);
  EXPECT_THROW(tensor_map<2>(array.data() + 1, {64, 8}, {64, 8}, {1, 1}), Error);  // 2 bytes off
  EXPECT_THROW(tensor_map<2>(array.data(), {68, 8}, {64, 8}, {1, 1}), Error);  // rows of 136 bytes
  EXPECT_THROW(tensor_map<2>(array.data(), {64, 0}, {64, 8}, {1, 1}), Error);  // nothing
  // Boxes whose rows are not of a pattern; a side of 256 is the longest, a step of 8 the largest.
  EXPECT_THROW(tensor_map<2>(array.data(), {64, 8}, {32, 8}, {1, 1}), Error);
  EXPECT_THROW(tensor_map<2>(array.data(), {64, 8}, {64, 0}, {1, 1}), Error);
  EXPECT_NO_THROW(tensor_map<2>(array.data(), {64, 8}, {64, 256}, {1, 1}));
  EXPECT_THROW(tensor_map<2>(array.data(), {64, 8}, {64, 257}, {1, 1}), Error);
  EXPECT_NO_THROW(tensor_map<2>(array.data(), {64, 8}, {64, 8}, {1, 8}));
  EXPECT_THROW(tensor_map<2>(array.data(), {64, 8}, {64, 8}, {1, 9}), Error);
  EXPECT_THROW(tensor_map<2>(array.data(), {64, 8}, {64, 8}, {1, 0}), Error);
}

}  // namespace
}  // namespace mutilde::emulation
