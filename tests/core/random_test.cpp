#include "core/random.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "core/kernel_testing.h"

namespace mutilde {
namespace {

using testing_kernels::on_threads;

constexpr int64_t kMany = 200'003;  // not a multiple of a block

/// Moments and distances below are of fixed draws, so no test is flaky; a bound that a right
/// generator passes with all but this probability says that a draw is as good as random.
constexpr double kDoubt = 1e-6;
constexpr double kSigmas = 4.9;  // a normal deviates further with probability 1e-6

double mean(const std::vector<double>& x) {
  return std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
}

/// Mean of f(x).
template <class F>
double mean_of(const std::vector<double>& x, const F& f) {
  double sum = 0;
  for (double value : x) sum += f(value);
  return sum / static_cast<double>(x.size());
}

/// The largest distance between the empirical distribution of x and `cdf` (Kolmogorov-Smirnov).
template <class Cdf>
double distance(std::vector<double> x, const Cdf& cdf) {
  std::sort(x.begin(), x.end());
  const double n = static_cast<double>(x.size());
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double p = cdf(x[i]), below = static_cast<double>(i) / n;
    worst = std::max({worst, p - below, below + 1 / n - p});
  }
  return worst;
}

/// Dvoretzky, Kiefer, Wolfowitz, Massart: P(distance > d) <= 2 exp(-2 n d^2).
double distance_bound(size_t n) {
  return std::sqrt(std::log(2 / kDoubt) / (2 * static_cast<double>(n)));
}

double normal_cdf(double z) { return 0.5 * std::erfc(-z / std::numbers::sqrt2); }

/// Correlation of neighbours x[i], x[i + lag] for x of mean 0 and variance 1.
double correlation(const std::vector<double>& x, size_t lag, size_t step) {
  double sum = 0;
  size_t n = 0;
  for (size_t i = 0; i + lag < x.size(); i += step, ++n) sum += x[i] * x[i + lag];
  return sum / static_cast<double>(n);
}

// Random123's kat_vectors, "philox4x32 10".
TEST(Philox, GivesThePublishedAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t kAll = 0xffffffff;
  EXPECT_EQ(philox4x32({kAll, kAll, kAll, kAll}, {kAll, kAll}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, BlockTakesSeedAsKeyAndBlockThenStreamAsCounter) {
  EXPECT_EQ(random_block(0x299f31d0'a4093822, 0x03707344'13198a2e, 0x85a308d3'243f6a88),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Uniform, IsTheHighBitsOfTheWordOfItsPosition) {
  Generator generator(RandomPosition{7, 3, 40});
  const auto single = generator.uniform({10}).to_vector<float>();
  Generator again(RandomPosition{7, 3, 40});
  const auto twice = again.uniform({10}, DType::kFloat64).to_vector<double>();
  for (size_t i = 0; i < 10; ++i) {
    const uint32_t word = random_block(7, 3, 10 + i / 4)[i % 4];
    EXPECT_EQ(single[i], static_cast<float>(word >> 8) / 16777216.0f);
    EXPECT_EQ(twice[i], static_cast<double>(word) / 4294967296.0);
  }
}

TEST(Uniform, LooksUniform) {
  for (DType dtype : {DType::kFloat32, DType::kFloat64}) {
    const auto x = Generator(11).uniform({kMany}, dtype).to_vector<double>();
    const double n = static_cast<double>(kMany);
    EXPECT_GE(*std::min_element(x.begin(), x.end()), 0.0);
    EXPECT_LT(*std::max_element(x.begin(), x.end()), 1.0);
    // Variances of u and of (u - 1/2)^2 are 1/12 and 1/180.
    EXPECT_NEAR(mean(x), 0.5, kSigmas * std::sqrt(1 / (12 * n)));
    EXPECT_NEAR(mean_of(x, [](double u) { return (u - 0.5) * (u - 0.5); }), 1.0 / 12,
                kSigmas * std::sqrt(1 / (180 * n)));
    EXPECT_LT(distance(x, [](double u) { return u; }), distance_bound(x.size()));
  }
}

TEST(Normal, IsBoxMullerOfTheWordsOfItsBlock) {
  const RandomPosition position{5, 9, 4};
  const auto single = Generator(position).normal({403}).to_vector<float>();
  const auto twice = Generator(position).normal({403}, DType::kFloat64).to_vector<double>();
  const auto expected = [](uint32_t a, uint32_t b, bool second, int bits) {
    const double unit = std::exp2(-bits);
    const double u = (static_cast<double>(a >> (32 - bits)) + 1) * unit;
    const double angle = 2 * std::numbers::pi * static_cast<double>(b >> (32 - bits)) * unit;
    return std::sqrt(-2 * std::log(u)) * (second ? std::sin(angle) : std::cos(angle));
  };
  for (size_t i = 0; i < single.size(); ++i) {
    const auto words = random_block(5, 9, 1 + i / 4);
    const uint32_t a = words[i % 4 / 2 * 2], b = words[i % 4 / 2 * 2 + 1];
    // Radius below 6. In float the angle, up to 2 pi, is rounded twice: an error of at most
    // 2 * 2 pi * 2^-24 < 8e-7, hence 4.5e-6 of the product; the functions' own last bits on top.
    EXPECT_NEAR(single[i], expected(a, b, i % 2 == 1, 24), 6e-6) << i;
    EXPECT_NEAR(twice[i], expected(a, b, i % 2 == 1, 32), 1e-13) << i;
  }
}

TEST(Normal, LooksNormal) {
  for (DType dtype : {DType::kFloat32, DType::kFloat64}) {
    const auto x = Generator(13).normal({kMany}, dtype).to_vector<double>();
    const double n = static_cast<double>(kMany);
    // Variances of z, z^2, z^3, z^4 are 1, 2, 15, 96.
    EXPECT_NEAR(mean(x), 0, kSigmas * std::sqrt(1 / n));
    EXPECT_NEAR(mean_of(x, [](double z) { return z * z; }), 1, kSigmas * std::sqrt(2 / n));
    EXPECT_NEAR(mean_of(x, [](double z) { return z * z * z; }), 0, kSigmas * std::sqrt(15 / n));
    EXPECT_NEAR(mean_of(x, [](double z) { return z * z * z * z; }), 3, kSigmas * std::sqrt(96 / n));
    EXPECT_LT(distance(x, normal_cdf), distance_bound(x.size()));
  }
}

TEST(Normal, NeighboursAreUncorrelated) {
  const auto x = Generator(17).normal({kMany}).to_vector<double>();
  const double n = static_cast<double>(kMany);
  for (size_t lag : {1, 2, 3, 4, 8, 64}) {
    EXPECT_NEAR(correlation(x, lag, 1), 0, kSigmas / std::sqrt(n)) << lag;
  }
  // The two of one Box-Muller pair, and their squares (which share a radius).
  EXPECT_NEAR(correlation(x, 1, 2), 0, kSigmas / std::sqrt(n / 2));
  std::vector<double> squares;
  for (double z : x) squares.push_back((z * z - 1) / std::numbers::sqrt2);
  EXPECT_NEAR(correlation(squares, 1, 2), 0, kSigmas / std::sqrt(n / 2));
}

TEST(Draws, DoNotDependOnTheThreadCount) {
  const Shape shape{3, 5, 4099};
  for (DType dtype : {DType::kFloat32, DType::kFloat64}) {
    const auto draw = [&] {
      Generator generator(1, 2);
      auto all = generator.normal(shape, dtype).to_vector<double>();
      const Tensor x = generator.uniform(shape, dtype);
      const Tensor dropped = empty_like(x);
      backend(x).dropout(x, 0.3, generator.take(x.numel()), dropped);
      for (const Tensor& more : {x, dropped}) {
        const auto values = more.to_vector<double>();
        all.insert(all.end(), values.begin(), values.end());
      }
      return all;
    };
    const auto one = on_threads(1, draw);
    EXPECT_EQ(on_threads(2, draw), one);
    EXPECT_EQ(on_threads(3, draw), one);
  }
}

TEST(Draws, JoinAtBlockBorders) {
  for (int64_t first : {4, 64, 1020}) {
    Generator parts(3), whole(3);
    auto joined = parts.normal({first}).to_vector<float>();
    const auto rest = parts.normal({37}).to_vector<float>();
    joined.insert(joined.end(), rest.begin(), rest.end());
    EXPECT_EQ(joined, whole.normal({first + 37}).to_vector<float>());
    EXPECT_EQ(parts.position().offset, whole.position().offset);
  }
}

TEST(Draws, OfNothingAreEmptyAndTakeNothing) {
  Generator generator(3);
  EXPECT_EQ(generator.normal({0, 3}).numel(), 0);
  EXPECT_EQ(generator.uniform({2, 0}).numel(), 0);
  EXPECT_EQ(generator.permutation(0).numel(), 0);
  EXPECT_EQ(generator.position().offset, 0u);
}

TEST(Draws, DifferBySeedStreamAndOffset) {
  const auto draw = [](RandomPosition position) {
    return Generator(position).normal({64}).to_vector<float>();
  };
  const auto base = draw({1, 1, 0});
  for (RandomPosition other :
       {RandomPosition{2, 1, 0}, RandomPosition{1, 2, 0}, RandomPosition{1, 1, 64},
        RandomPosition{1, uint64_t{1} << 32 | 1, 0}}) {
    const auto values = draw(other);
    int64_t equal = 0;
    for (size_t i = 0; i < values.size(); ++i) equal += values[i] == base[i] ? 1 : 0;
    EXPECT_LE(equal, 1) << other.seed << ' ' << other.stream << ' ' << other.offset;
  }
}

TEST(Generator, ContinuesFromItsPosition) {
  Generator generator(19, 4);
  generator.normal({5});
  const RandomPosition saved = generator.position();
  EXPECT_EQ(saved.offset, 8u);  // two whole blocks
  EXPECT_EQ(Generator(saved).normal({9}).to_vector<float>(),
            generator.normal({9}).to_vector<float>());
}

TEST(Generator, StartsAtABlock) {
  EXPECT_NO_THROW(Generator(RandomPosition{1, 2, 8}).integers({4}, 10));
  for (uint64_t offset : {1, 2, 3, 7}) {
    try {
      Generator(RandomPosition{1, 2, offset});
      ADD_FAILURE() << "nothing was thrown at offset " << offset;
    } catch (const Error& error) {
      EXPECT_EQ(error.what(),
                fmt::format("Generator: the offset {} of the random position is no multiple of 4",
                            offset));
    }
  }
  EXPECT_THROW(Generator(1).normal({2}, DType::kBFloat16), DTypeError);
  EXPECT_THROW(Generator(1).normal({2}, DType::kFloat16), DTypeError);
  EXPECT_THROW(Generator(1).uniform({2}, DType::kInt64), DTypeError);
}

TEST(Integers, AreSpreadEvenly) {
  constexpr int64_t kHigh = 7;
  const auto values = Generator(23).integers({kMany}, kHigh).to_vector<int64_t>();
  std::vector<double> count(kHigh);
  for (int64_t value : values) {
    ASSERT_GE(value, 0);
    ASSERT_LT(value, kHigh);
    ++count[static_cast<size_t>(value)];
  }
  const double expected = static_cast<double>(kMany) / kHigh;
  double chi_squared = 0;
  for (double c : count) chi_squared += (c - expected) * (c - expected) / expected;
  EXPECT_LT(chi_squared, 38.3);  // exceeded with probability 1e-6 at 6 degrees of freedom
}

TEST(Integers, CoverRangesOverThirtyTwoBits) {
  constexpr int64_t kHigh = int64_t{1} << 40;
  const auto values = Generator(29).integers({1000}, kHigh).to_vector<double>();
  // Mean of 1000 uniforms on [0, high).
  EXPECT_NEAR(mean(values) / static_cast<double>(kHigh), 0.5, kSigmas / std::sqrt(12 * 1000.0));
  EXPECT_EQ(Generator(29).integers({3}, 1).to_vector<int64_t>(), (std::vector<int64_t>{0, 0, 0}));
  EXPECT_THROW(Generator(29).integers({3}, 0), Error);
}

TEST(Permutation, HoldsEachIndexOnce) {
  Generator generator(31);
  const auto first = generator.permutation(1001).to_vector<int64_t>();
  const auto second = generator.permutation(1001).to_vector<int64_t>();
  EXPECT_NE(first, second);
  auto sorted = first;
  std::sort(sorted.begin(), sorted.end());
  for (size_t i = 0; i < sorted.size(); ++i) ASSERT_EQ(sorted[i], static_cast<int64_t>(i));
}

TEST(Permutation, GivesEachOrderEquallyOften) {
  constexpr int kDraws = 60'000;
  Generator generator(37);
  std::vector<double> count(27);
  for (int i = 0; i < kDraws; ++i) {
    const auto order = generator.permutation(3).to_vector<int64_t>();
    ++count[static_cast<size_t>(order[0] * 9 + order[1] * 3 + order[2])];
  }
  double chi_squared = 0;
  for (size_t code : {5, 7, 11, 15, 19, 21}) {  // 012, 021, 102, 120, 201, 210
    chi_squared += (count[code] - kDraws / 6.0) * (count[code] - kDraws / 6.0) / (kDraws / 6.0);
  }
  EXPECT_LT(chi_squared, 35.9);  // exceeded with probability 1e-6 at 5 degrees of freedom
}

TEST(Dropout, KeepsTheExpectedShareAndScalesIt) {
  const RandomPosition position{41, 1, 8};
  constexpr double kP = 0.3;
  const Tensor x = Tensor::full({kMany}, 2.0), out = empty_like(x);
  backend(x).dropout(x, kP, position, out);
  const auto values = out.to_vector<float>();
  int64_t kept = 0;
  for (float value : values) {
    if (value == 0.0f) continue;
    ++kept;
    ASSERT_FLOAT_EQ(value, 2.0f / 0.7f);
  }
  const double n = static_cast<double>(kMany);
  EXPECT_NEAR(static_cast<double>(kept) / n, 1 - kP, kSigmas * std::sqrt(kP * (1 - kP) / n));

  // The same elements in float64, and none at p = 0.
  const Tensor x64 = Tensor::full({kMany}, 2.0, DType::kFloat64), out64 = empty_like(x64);
  backend(x).dropout(x64, kP, position, out64);
  const auto values64 = out64.to_vector<double>();
  for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(values64[i] == 0, values[i] == 0);
  backend(x).dropout(x, 0.0, position, out);
  EXPECT_EQ(out.to_vector<float>(), x.to_vector<float>());
}

}  // namespace
}  // namespace mutilde
