// Winograd's convolutions equal the plain ones, and lose as few digits as winograd.h says.
#include "core/cpu/winograd.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "core/cpu/plain.h"
#include "core/cpu/simd.h"
#include "tests/core/kernel_testing.h"

namespace mutilde {
namespace {

using testing_kernels::on_threads;

template <class T>
std::vector<T> random_values(int64_t count, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal;
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) value = static_cast<T>(normal(generator));
  return values;
}

/// The three convolutions of one shape, as Winograd's functions compute them.
template <int m, class T>
struct Winograd {
  static std::vector<T> forward(const PlainConv& s, const T* x, const T* weight, const T* bias) {
    std::vector<T> out(static_cast<size_t>(s.N * s.H_out() * s.W_out() * s.C_out), T(1e30));
    winograd_conv<m>(Conv3x3<T>{s.N, s.H, s.W, s.C, s.H_out(), s.W_out(), s.C_out, s.padding, x,
                                weight, 3 * s.C, s.C, 1, 9 * s.C, bias, out.data()});
    return out;
  }
  static std::vector<T> backward_input(const PlainConv& s, const T* dout, const T* weight) {
    std::vector<T> dx(static_cast<size_t>(s.N * s.H * s.W * s.C), T(1e30));
    winograd_conv<m>(Conv3x3<T>{s.N, s.H_out(), s.W_out(), s.C_out, s.H, s.W, s.C, 2 - s.padding,
                                dout, weight + 8 * s.C, -3 * s.C, -s.C, 9 * s.C, 1, nullptr,
                                dx.data()});
    return dx;
  }
  static std::vector<T> backward_weight(const PlainConv& s, const T* x, const T* dout) {
    std::vector<T> dweight(static_cast<size_t>(s.C_out * 9 * s.C), T(1e30));
    winograd_weight_gradient<m>(s.N, s.H, s.W, s.C, s.H_out(), s.W_out(), s.C_out, s.padding, x,
                                dout, dweight.data());
    return dweight;
  }
};

struct Error {
  double root_mean_square, largest;  // both relative to the root mean square of what is expected
};

template <class T, class U>
Error error_of(const std::vector<T>& values, const std::vector<U>& expected) {
  EXPECT_EQ(values.size(), expected.size());
  double square = 0, size = 0, largest = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double e = static_cast<double>(values[i]) - static_cast<double>(expected[i]);
    square += e * e;
    size += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
    largest = std::isfinite(e) ? std::max(largest, std::abs(e)) : HUGE_VAL;
  }
  const double count = static_cast<double>(std::max<size_t>(values.size(), 1));
  const double scale = std::max(std::sqrt(size / count), 1e-30);
  return {std::sqrt(square / count) / scale, largest / scale};
}

template <int m>
void expect_equal_to_plain() {
  constexpr int64_t kLanes = simd::kLanes<double>;
  const std::vector<PlainConv> cases = {
      {2, 8, 8, 16, 16, 3, 3, 1, 1},                  // whole tiles
      {1, 1, 1, 8, 8, 3, 3, 1, 1},                    // one pixel, less than a tile
      {3, 5, 7, 3 * kLanes, 5 * kLanes, 3, 3, 1, 1},  // past the edge; a last panel half as wide
      {2, 9, 6, 16, 8, 3, 3, 1, 0},                   // no padding
      {2, 6, 9, 8, 24, 3, 3, 1, 2},                   // more of it
      {30, 32, 32, 32, 32, 3, 3, 1, 1},               // many blocks, several chunks
      {100, 4, 4, 16, 24, 3, 3, 1, 1},                // a tile an image
      {0, 8, 8, 8, 8, 3, 3, 1, 1},                    // no image
  };
  for (const PlainConv& s : cases) {
    const int64_t out_size = s.N * s.H_out() * s.W_out() * s.C_out;
    const auto x = random_values<double>(s.N * s.H * s.W * s.C, 1);
    const auto weight = random_values<double>(s.C_out * 9 * s.C, 2);
    const auto bias = random_values<double>(s.C_out, 3);
    const auto dout = random_values<double>(out_size, 4);
    std::vector<double> out(dout.size()), dx(x.size()), dweight(weight.size());
    plain_conv2d(s, x.data(), weight.data(), bias.data(), out.data());
    plain_conv2d_backward_input(s, dout.data(), weight.data(), dx.data());
    plain_conv2d_backward_weight(s, x.data(), dout.data(), dweight.data());
    // A wrong coefficient is an error of order 1; rounding, even amplified 100 times, is 1e-13.
    using W = Winograd<m, double>;
    const std::string shape =
        ::testing::PrintToString(std::vector<int64_t>{s.N, s.H, s.W, s.C, s.C_out, s.padding});
    EXPECT_LT(error_of(W::forward(s, x.data(), weight.data(), bias.data()), out).largest, 1e-12)
        << shape;
    EXPECT_LT(error_of(W::backward_input(s, dout.data(), weight.data()), dx).largest, 1e-12)
        << shape;
    EXPECT_LT(error_of(W::backward_weight(s, x.data(), dout.data()), dweight).largest, 1e-12)
        << shape;
  }
}

TEST(Winograd, TilesOf2EqualThePlainConvolution) { expect_equal_to_plain<2>(); }
TEST(Winograd, TilesOf4EqualThePlainConvolution) { expect_equal_to_plain<4>(); }

TEST(Winograd, GivesTheSameBitsOnAnyNumberOfThreads) {
  for (const int64_t N : {2, 16}) {
    const PlainConv s{N, 18, 18, 32, 48, 3, 3, 1, 1};
    const auto x = random_values<float>(s.N * s.H * s.W * s.C, 1);
    const auto weight = random_values<float>(s.C_out * 9 * s.C, 2);
    const auto dout = random_values<float>(s.N * s.H_out() * s.W_out() * s.C_out, 3);
    using W = Winograd<4, float>;
    const auto all = [&] {
      return std::vector{W::forward(s, x.data(), weight.data(), nullptr),
                         W::backward_input(s, dout.data(), weight.data()),
                         W::backward_weight(s, x.data(), dout.data())};
    };
    const auto one = on_threads(1, all);
    EXPECT_EQ(on_threads(2, all), one);
    EXPECT_EQ(on_threads(3, all), one);
  }
}

// A sample must not depend on what else is in its batch.
TEST(Winograd, AnImageIsTheSameInAnyBatch) {
  for (const int64_t size : {4, 8, 16}) {
    const PlainConv s{16, size, size, 32, 32, 3, 3, 1, 1};
    const auto x = random_values<float>(s.N * size * size * s.C, 1);
    const auto weight = random_values<float>(s.C_out * 9 * s.C, 2);
    const auto convolve = [&](int64_t N) {
      std::vector<float> out(static_cast<size_t>(N * size * size * s.C_out));
      const ConstView in{x.data(), DType::kFloat32, {N, size, size, s.C}};
      testing_kernels::cpu().conv2d(in, {weight.data(), DType::kFloat32, {s.C_out, 3, 3, s.C}}, {},
                                    {}, {1, 1},
                                    {out.data(), DType::kFloat32, {N, size, size, s.C_out}});
      out.resize(static_cast<size_t>(size * size * s.C_out));  // the first image
      return out;
    };
    EXPECT_EQ(convolve(1), convolve(16)) << size;
    EXPECT_EQ(convolve(3), convolve(16)) << size;
  }
}

/// Root mean square error against float64, in units of float32's epsilon (2^-23), of the direct sum
/// and of both tile sizes, for 128 channels of normal numbers.
template <class Plain, class Compute>
void expect_errors(const char* what, const Plain& plain, const Compute& compute, double limit_2,
                   double limit_4) {
  constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
  const auto expected = plain(double{});
  const double direct = error_of(plain(float{}), expected).root_mean_square / kEpsilon;
  const auto [of_2, of_4] = compute();
  const double error_2 = error_of(of_2, expected).root_mean_square / kEpsilon;
  const double error_4 = error_of(of_4, expected).root_mean_square / kEpsilon;
  std::printf("%-16s direct %.2f, F(2x2) %.2f, F(4x4) %.2f epsilon\n", what, direct, error_2,
              error_4);
  EXPECT_LT(error_2, limit_2) << what;
  EXPECT_LT(error_4, limit_4) << what;
}

// The limits are twice what was measured (g++ 12, AVX2): a transform that loses a digit more fails.
TEST(Winograd, ErrorInFloat32IsAsStated) {
  const PlainConv s{4, 16, 16, 128, 32, 3, 3, 1, 1};
  const auto x = random_values<float>(s.N * s.H * s.W * s.C, 1);
  const auto weight = random_values<float>(s.C_out * 9 * s.C, 2);
  const auto dout = random_values<float>(s.N * s.H * s.W * s.C_out, 3);
  const auto cast = [](const std::vector<float>& v, auto zero) {
    return std::vector<decltype(zero)>(v.begin(), v.end());
  };
  using F2 = Winograd<2, float>;
  using F4 = Winograd<4, float>;
  expect_errors(
      "forward",
      [&](auto zero) {
        const auto a = cast(x, zero), b = cast(weight, zero);
        std::vector<decltype(zero)> out(dout.size());
        plain_conv2d(s, a.data(), b.data(), decltype(b.data())(nullptr), out.data());
        return out;
      },
      [&] {
        return std::pair(F2::forward(s, x.data(), weight.data(), nullptr),
                         F4::forward(s, x.data(), weight.data(), nullptr));
      },
      6, 40);
  expect_errors(
      "backward input",
      [&](auto zero) {
        const auto a = cast(dout, zero), b = cast(weight, zero);
        std::vector<decltype(zero)> dx(x.size());
        plain_conv2d_backward_input(s, a.data(), b.data(), dx.data());
        return dx;
      },
      [&] {
        return std::pair(F2::backward_input(s, dout.data(), weight.data()),
                         F4::backward_input(s, dout.data(), weight.data()));
      },
      3.4, 22);
  expect_errors(
      "backward weight",
      [&](auto zero) {
        const auto a = cast(x, zero), b = cast(dout, zero);
        std::vector<decltype(zero)> dweight(weight.size());
        plain_conv2d_backward_weight(s, a.data(), b.data(), dweight.data());
        return dweight;
      },
      [&] {
        return std::pair(F2::backward_weight(s, x.data(), dout.data()),
                         F4::backward_weight(s, x.data(), dout.data()));
      },
      7, 30);
}

}  // namespace
}  // namespace mutilde
