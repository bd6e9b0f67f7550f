// A warp's instructions for products of small matrices: where numbers lie, copies that are waited for.
#include <cmath>

#include <gtest/gtest.h>

#include "cuda/mma_instructions.h"
#include "cuda/parallel.h"
#include "tests/cuda/device_array.h"

namespace mutilde::cuda {
namespace {

constexpr int kPitch = 24;  // of rows of 16 numbers

/// out = 2 a b, 16 x 8; a: 16 rows of k; b: 8 rows of k, or 16 rows k of 8 where transposed.
template <class E>
__global__ void product(const E* a, const E* b, bool transposed, float* out) {
  auto* tiles = dynamic_shared<E[2][16][kPitch]>();
  const int lane = threadIdx.x;
  for (int i = lane; i < 16 * 2; i += 32) {  // pieces of 8 numbers; b may have half as many
    copy_async<16>(&(*tiles)[0][i / 2][i % 2 * 8], a + i * 8, true);
    const int row = transposed ? i : i / 2, column = transposed ? 0 : i % 2 * 8;
    if (i < 16) copy_async<16>(&(*tiles)[1][row][column], b + i * 8, true);
  }
  commit_copies();
  wait_for_copies<0>();
  __syncwarp();
  uint32_t left[4], right[4];
  load_matrices(left, &(*tiles)[0][lane % 16][lane / 16 * 8]);
  if (transposed) {  // the last two matrices are not used: any rows do
    load_transposed(right, &(*tiles)[1][lane % 16][0]);
  } else {
    load_matrices(right, &(*tiles)[1][lane % 8][lane / 8 % 2 * 8]);
  }
  float sums[4] = {};
  for (int twice = 0; twice < 2; ++twice) multiply<E>(sums, left, right[0], right[1]);
  for (int i = 0; i < 4; ++i) out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

// 16 products of at most 1, twice: tensor cores cut off where we round, an ulp each.
template <class E>
void check_product() {
  const auto a = numbers<E>(16 * 16, 1), b = numbers<E>(16 * 8, 2);
  const DeviceArray<E> in_a(a), in_b(b);
  for (const bool transposed : {false, true}) {
    DeviceArray<float> out(16 * 8);
    launch<product<E>>({.grid = 1, .block = 32, .shared_bytes = 2 * 16 * kPitch * 2}, in_a.data(),
                       in_b.data(), transposed, out.data());
    const auto sums = out.to_host();
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 8; ++j) {
        double sum = 0;
        for (int k = 0; k < 16; ++k) {
          const float x = a[i * 16 + k], y = b[transposed ? k * 8 + j : j * 16 + k];
          sum += 2.0 * x * y;
        }
        EXPECT_NEAR(sums[i * 8 + j], sum, 32 * 32 * 0x1p-23) << i << "," << j;
      }
    }
  }
}

TEST(Mma, IsTheProductOfWhatWasLoaded) {
  check_product<__nv_bfloat16>();
  check_product<__half>();
}

/// Two numbers to a register and back, and each rounded by itself.
template <class E>
__global__ void pairs(const float* x, float* out, float* rounded) {
  const int i = threadIdx.x * 2;
  const float2 pair = unpack<E>(pack<E>(x[i], x[i + 1]));
  out[i] = pair.x;
  out[i + 1] = pair.y;
  for (int j = i; j < i + 2; ++j) rounded[j] = number(stored<E>(x[j]));
}

template <class E>
void check_pairs() {
  auto x = numbers<float>(64);
  for (size_t i = 0; i < 32; ++i) x[i] = std::ldexp(x[i], static_cast<int>(i) - 26);
  x[40] = 1e6F;  // infinity as a float16
  x[41] = -INFINITY;
  const DeviceArray<float> in(x);
  DeviceArray<float> out(64), rounded(64);
  launch<pairs<E>>({.grid = 1, .block = 32}, in.data(), out.data(), rounded.data());
  EXPECT_EQ(out.to_host(), rounded.to_host());
  for (size_t i = 0; i < 64; ++i) EXPECT_EQ(out.to_host()[i], static_cast<float>(E(x[i])));
}

TEST(Mma, APairIsTwoRoundedNumbers) {
  check_pairs<__nv_bfloat16>();
  check_pairs<__half>();
}

/// out: 64 numbers of x, of which only the first `count` exist.
__global__ void copy(const float* x, int count, float* out) {
  auto* shared = dynamic_shared<float>();
  const int i = threadIdx.x;
  if (i < 8) copy_async<16>(shared + i * 4, x + i * 4, i * 4 < count);
  commit_copies();
  copy_async<4>(shared + 32 + i, x + 32 + i, 32 + i < count);
  commit_copies();
  wait_for_copies<1>();
  __syncwarp();
  out[i] = shared[i];
  wait_for_copies<0>();
  __syncwarp();
  out[32 + i] = shared[32 + i];
}

TEST(Mma, CopiesAreThereWhenTheyWereWaitedFor) {
  const auto x = numbers<float>(64);
  for (const int count : {16, 43}) {
    const DeviceArray<float> in(x);
    DeviceArray<float> out(64);
    launch<copy>({.grid = 1, .block = 32, .shared_bytes = 64 * sizeof(float)}, in.data(), count,
                 out.data());
    auto expected = x;
    std::fill(expected.begin() + (count < 32 ? count : count), expected.end(), 0.0F);
    if (count > 32) std::copy(x.begin(), x.begin() + 32, expected.begin());
    EXPECT_EQ(out.to_host(), expected);
  }
}

__global__ void exponentials(const float* x, float* out) {
  out[threadIdx.x] = fast_exp2(x[threadIdx.x]);
}

TEST(Mma, FastExp2IsAPowerOfTwo) {
  std::vector<float> x = {0, 1, -3, -0.5F, -126, -INFINITY, -127.5F, -1000};
  for (int i = 0; i < 24; ++i) x.push_back(-0.7F * static_cast<float>(i));
  const DeviceArray<float> in(x);
  DeviceArray<float> out(32);
  launch<exponentials>({.grid = 1, .block = 32}, in.data(), out.data());
  const auto y = out.to_host();
  for (size_t i = 0; i < 32; ++i) {
    const double exact = std::exp2(static_cast<double>(x[i]));
    EXPECT_NEAR(y[i], exact < 0x1p-126 ? 0 : exact, exact * 0x1p-22) << x[i];
  }
}

}  // namespace
}  // namespace mutilde::cuda
