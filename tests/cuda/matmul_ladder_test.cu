// Each rung against a plain loop in double, on sizes that fit no tile.
#include <cmath>

#include <gtest/gtest.h>

#include "cuda/matmul_ladder.h"
#include "tests/cuda/device_array.h"

namespace mutilde::cuda {
namespace {

struct Sizes {
  int M, N, K;
};
constexpr Sizes kSizes[] = {{1, 1, 1}, {64, 64, 32}, {65, 63, 33}, {3, 130, 17}, {100, 1, 47}};

/// Calls multiply(a, b, out, M, N, K) for each of the sizes and compares. `unit`: half an ulp of
/// the type of the sums.
template <class T, class Sum, class Multiply>
void check_product(double unit, const Multiply& multiply) {
  for (const auto [M, N, K] : kSizes) {
    const std::vector<T> a = numbers<T>(size_t(M) * K, 1), b = numbers<T>(size_t(K) * N, 2);
    const DeviceArray<T> in_a(a), in_b(b);
    DeviceArray<Sum> out(size_t(M) * N);
    multiply(in_a.data(), in_b.data(), out.data(), M, N, K);
    const std::vector<Sum> host = out.to_host();
    for (int i = 0; i < M; ++i) {
      for (int j = 0; j < N; ++j) {
        double sum = 0;
        for (int k = 0; k < K; ++k) {
          sum +=
              static_cast<double>(a[size_t(i) * K + k]) * static_cast<double>(b[size_t(k) * N + j]);
        }
        // K products, each below 1 and rounded, and K additions, each of at most K.
        ASSERT_NEAR(host[size_t(i) * N + j], sum, unit * K * (K + 1))
            << "at " << i << "," << j << " of " << M << "x" << N << "x" << K;
      }
    }
  }
}

constexpr double kFloatUnit = 0x1p-24, kDoubleUnit = 0x1p-53;

TEST(MatmulLadder, PlainEqualsALoop) {
  check_product<float, float>(kFloatUnit,
                              [](auto... arguments) { matmul_plain(arguments..., nullptr); });
  check_product<double, double>(kDoubleUnit,
                                [](auto... arguments) { matmul_plain(arguments..., nullptr); });
}

TEST(MatmulLadder, TiledEqualsALoop) {
  check_product<float, float>(kFloatUnit,
                              [](auto... arguments) { matmul_tiled(arguments..., nullptr); });
  check_product<double, double>(kDoubleUnit,
                                [](auto... arguments) { matmul_tiled(arguments..., nullptr); });
}

TEST(MatmulLadder, TensorCoresEqualALoop) {
  // Twice the unit: tensor cores cut off bits where a float addition rounds.
  check_product<__nv_bfloat16, float>(
      2 * kFloatUnit, [](auto... arguments) { matmul_wmma(arguments..., nullptr); });
  check_product<__half, float>(2 * kFloatUnit,
                               [](auto... arguments) { matmul_wmma(arguments..., nullptr); });
}

TEST(MatmulLadder, AProductOfNoFactorsIsZero) {
  DeviceArray<float> a(1), b(1), out(std::vector<float>(6, 1.0F));
  matmul_plain<float>(a.data(), b.data(), out.data(), 2, 3, 0, nullptr);
  EXPECT_EQ(out.to_host(), std::vector<float>(6, 0.0F));
  DeviceArray<float> tiled(std::vector<float>(6, 1.0F));
  matmul_tiled<float>(a.data(), b.data(), tiled.data(), 2, 3, 0, nullptr);
  EXPECT_EQ(tiled.to_host(), std::vector<float>(6, 0.0F));
}

TEST(MatmulLadder, AnEmptyProductStartsNoKernel) {
  EXPECT_NO_THROW(matmul_plain<float>(nullptr, nullptr, nullptr, 0, 3, 5, nullptr));
  EXPECT_NO_THROW(matmul_tiled<float>(nullptr, nullptr, nullptr, 4, 0, 5, nullptr));
  EXPECT_NO_THROW(matmul_wmma<__half>(nullptr, nullptr, nullptr, 0, 0, 5, nullptr));
}

}  // namespace
}  // namespace mutilde::cuda
