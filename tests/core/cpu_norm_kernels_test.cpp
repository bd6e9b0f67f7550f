// The fast norms, softmax and attention equal the plain ones (core/cpu/plain.h), for shapes that leave every
// tail, and do not depend on the number of threads; the vector functions that they stand on (core/cpu/simd.h).
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/cpu/plain.h"
#include "core/cpu/simd.h"
#include "core/plain_comparison.h"

namespace mutilde {
namespace {

using namespace testing_kernels;

template <class T>
class CpuNormKernels : public ::testing::Test {};
TYPED_TEST_SUITE(CpuNormKernels, Floats, FloatNames);

// --- Normalisation -------------------------------------------------------------------------------

/// The plain norms compute in double and round once. The fast ones keep up to 128 terms of a
/// channel in one chain of type T before they go on in double, so a sum is off by at most 128 *
/// epsilon of its absolute sum; for N(0, 1) inputs the average error is far below. A few factors
/// follow, and 1 + |value| as the scale.
template <class T>
double norm_tolerance() {
  return 64 * static_cast<double>(std::numeric_limits<T>::epsilon());
}

struct NormCase {
  PlainNorm s;
  bool scaled;
};

std::vector<NormCase> norm_cases() {
  std::vector<NormCase> cases;
  for (const bool silu : {false, true}) {
    for (const bool scaled : {false, true}) {
      for (const auto& [N, P, C, groups] : std::vector<std::array<int64_t, 4>>{{1, 1, 1, 1},
                                                                               {1, 1, 4, 2},
                                                                               {3, 7, 5, 1},
                                                                               {2, 5, 6, 3},
                                                                               {4, 16, 32, 32},
                                                                               {1, 300, 64, 32},
                                                                               {2, 131, 19, 19},
                                                                               {5, 33, 96, 32},
                                                                               {0, 4, 8, 2}}) {
        cases.push_back({{N, P, C, groups, 1e-5, silu}, scaled});
      }
    }
  }
  return cases;
}

template <class T>
struct NormData {
  Data<T> x, weight, bias, scale_shift, dout;
  Data<T> out, mean, rstd, dx, dweight, dbias, dscale_shift;

  explicit NormData(const PlainNorm& s, double centre = 0)
      : x(random_normal<T>(s.N * s.P * s.C, 1)),
        weight(random_normal<T>(s.C, 2)),
        bias(random_normal<T>(s.C, 3)),
        scale_shift(random_normal<T>(s.N * 2 * s.C, 4)),
        dout(random_normal<T>(s.N * s.P * s.C, 5)),
        out(unwritten<T>(s.N * s.P * s.C)),
        mean(unwritten<T>(s.N * s.groups)),
        rstd(mean),
        dx(out),
        dweight(unwritten<T>(s.C)),
        dbias(dweight),
        dscale_shift(unwritten<T>(s.N * 2 * s.C)) {
    for (T& value : x) value += static_cast<T>(centre);
  }

  void run_fast(const PlainNorm& s, bool scaled) {
    const GroupNormOptions options{s.groups, s.norm_eps, s.silu};
    const Shape image{s.N, s.P, s.C}, channels{s.C}, statistics{s.N, s.groups}, both{s.N, 2 * s.C};
    const ConstView scale = scaled ? view(scale_shift, both) : ConstView{};
    const Data<T>& x_in = x;
    cpu().group_norm(view(x_in, image), view(std::as_const(weight), channels),
                     view(std::as_const(bias), channels), scale, options, view(out, image),
                     view(mean, statistics), view(rstd, statistics));
    cpu().group_norm_backward(
        view(x_in, image), view(std::as_const(weight), channels),
        view(std::as_const(bias), channels), scale, view(std::as_const(mean), statistics),
        view(std::as_const(rstd), statistics), options, view(std::as_const(dout), image),
        view(dx, image), view(dweight, channels), view(dbias, channels),
        scaled ? view(dscale_shift, both) : View{});
  }
  void run_plain(const PlainNorm& s, bool scaled) {
    const T* scale = scaled ? scale_shift.data() : nullptr;
    plain_group_norm(s, x.data(), weight.data(), bias.data(), scale, out.data(), mean.data(),
                     rstd.data());
    plain_group_norm_backward(s, x.data(), weight.data(), bias.data(), scale, mean.data(),
                              rstd.data(), dout.data(), dx.data(), dweight.data(), dbias.data(),
                              scaled ? dscale_shift.data() : nullptr);
  }
};

TYPED_TEST(CpuNormKernels, GroupNormEqualsThePlainOneForwardAndBackward) {
  using T = TypeParam;
  for (const auto& [s, scaled] : norm_cases()) {
    SCOPED_TRACE(std::to_string(s.N) + " x " + std::to_string(s.P) + " x " + std::to_string(s.C) +
                 ", " + std::to_string(s.groups) + " groups, silu " + std::to_string(s.silu) +
                 ", scaled " + std::to_string(scaled));
    NormData<T> fast(s), plain(s);
    fast.run_fast(s, scaled);
    plain.run_plain(s, scaled);
    const double tolerance = norm_tolerance<T>();
    EXPECT_TRUE(within(fast.mean, plain.mean, tolerance)) << "mean";
    // A group of a single element has variance 0: rstd is 316, and u cancels
    // 316 * x against 316 * mean.
    const double gain = s.P * s.C / s.groups == 1 ? 316 : 1;
    EXPECT_TRUE(within(fast.rstd, plain.rstd, tolerance * gain)) << "rstd";
    EXPECT_TRUE(within(fast.out, plain.out, tolerance * gain)) << "out";
    EXPECT_TRUE(within(fast.dx, plain.dx, tolerance * gain * gain)) << "dx";
    // Sums over positions and images grow with their number.
    const double count = std::sqrt(static_cast<double>(std::max<int64_t>(1, s.N * s.P)));
    EXPECT_TRUE(within(fast.dweight, plain.dweight, tolerance * gain * count)) << "dweight";
    EXPECT_TRUE(within(fast.dbias, plain.dbias, tolerance * gain * count)) << "dbias";
    EXPECT_TRUE(within(fast.dscale_shift, plain.dscale_shift, tolerance * gain * count))
        << "dscale_shift";
  }
}

TYPED_TEST(CpuNormKernels, GroupNormSurvivesAMeanFarFromZero) {
  using T = TypeParam;
  // E[x^2] - E[x]^2 would lose everything: the mean is 1000 standard deviations away, its square
  // 1e6 of them. What must remain is the rounding of x itself, epsilon * 1000 of a standard
  // deviation; and in double the plain sum of 400 numbers rounds 400 times.
  const PlainNorm s{2, 200, 64, 32, 1e-5, false};
  NormData<T> fast(s, 1000), plain(s, 1000);
  fast.run_fast(s, false);
  plain.run_plain(s, false);
  const double epsilon = static_cast<double>(std::numeric_limits<T>::epsilon());
  EXPECT_TRUE(within(fast.rstd, plain.rstd, 64 * epsilon));
  EXPECT_TRUE(within(fast.out, plain.out, (std::is_same_v<T, float> ? 4 : 400) * 1000 * epsilon));
}

TYPED_TEST(CpuNormKernels, GroupNormDoesNotDependOnTheNumberOfThreads) {
  using T = TypeParam;
  for (const int64_t N : {1, 2, 5}) {  // chunks as tasks, and images
    const PlainNorm s{N, 300, 70, 10, 1e-5, true};
    expect_same_bits<T>([&] {
      NormData<T> data(s);
      data.run_fast(s, true);
      for (const Data<T>* more :
           {&data.dx, &data.dweight, &data.dbias, &data.dscale_shift, &data.mean, &data.rstd}) {
        data.out.insert(data.out.end(), more->begin(), more->end());
      }
      return data.out;
    });
  }
}

TYPED_TEST(CpuNormKernels, SoftmaxEqualsThePlainOne) {
  using T = TypeParam;
  for (const auto& [rows, columns] :
       std::vector<std::array<int64_t, 2>>{{1, 1}, {3, 7}, {5, 8}, {64, 65}, {0, 3}, {3, 0}}) {
    Data<T> x = random_normal<T>(rows * columns, 1);
    const Data<T> dout = random_normal<T>(rows * columns, 2);
    for (T& value : x) value *= 10;
    Data<T> fast = unwritten<T>(rows * columns), plain = fast, fast_dx = fast, plain_dx = fast;
    cpu().softmax(view(std::as_const(x), {rows, columns}), view(fast, {rows, columns}));
    plain_softmax(rows, columns, x.data(), plain.data());
    // An exponential within 2 epsilon of one within 1, and a sum of `columns` of them.
    const double tolerance =
        static_cast<double>(std::numeric_limits<T>::epsilon()) * static_cast<double>(4 + columns);
    EXPECT_TRUE(within(fast, plain, tolerance));
    cpu().softmax_backward(view(std::as_const(fast), {rows, columns}), view(dout, {rows, columns}),
                           view(fast_dx, {rows, columns}));
    plain_softmax_backward(rows, columns, fast.data(), dout.data(), plain_dx.data());
    EXPECT_TRUE(within(fast_dx, plain_dx, tolerance));
  }
}

/// The largest error of f against e^x from `low` to `high`, in units of the result's last place.
template <class F>
double worst_exp_error(double low, double high, const F& f) {
  double worst = 0;
  for (double x = low; x < high; x += 0.00137) {
    const float at = static_cast<float>(x), y = f(simd::broadcast(at))[0];
    const double exact = std::exp(static_cast<double>(at));
    worst = std::max(worst, std::abs(y - exact) / std::ldexp(1.0, std::ilogb(exact) - 23));
  }
  return worst;
}

TEST(Simd, PairsOfBfloat16RoundToEvenAndKeepWhatIsNotFinite) {
  constexpr int kLanes = simd::kLanes<float>;
  const auto bits_of = [](float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
  };
  const float infinity = std::numeric_limits<float>::infinity();
  Data<float> values = {0.0f,
                        -0.0f,
                        1.0f,
                        infinity,
                        -infinity,
                        1 + 0x1p-8f,      // ties: down to even
                        1 + 3 * 0x1p-8f,  // up to even
                        std::nextafter(1 + 0x1p-8f, 2.0f),
                        3.3895314e38f};
  for (const float x : random_normal<float>(200, 1)) values.push_back(x);
  for (const float x : values) {
    const simd::Vec<float> first = simd::broadcast(x), second = simd::broadcast(-x);
    const uint32_t expected = bits_of(std::isfinite(x) ? rounded_to_bf16(x) : x) >> 16;
    const simd::Vec<simd::Bf16Pair> pairs = simd::pair_up(first, second);
    std::array<uint16_t, kLanes> halves;
    simd::store_bf16(halves.data(), first);
    for (int i = 0; i < kLanes; ++i) {
      EXPECT_EQ(pairs[i] & 0xffff, expected) << x;
      EXPECT_EQ(pairs[i] >> 16, expected ^ 0x8000) << x;
      EXPECT_EQ(halves[static_cast<size_t>(i)], expected) << x;
    }
  }
  // One whose payload a rounding up would carry into the sign.
  const uint32_t nan_bits = 0x7fffffff;
  float nan;
  __builtin_memcpy(&nan, &nan_bits, 4);
  const simd::Vec<simd::Bf16Pair> pairs = simd::pair_up(simd::broadcast(nan), simd::Vec<float>{});
  EXPECT_EQ(pairs[0] & 0x7f80, 0x7f80u);
  EXPECT_NE(pairs[0] & 0x7f, 0u);
}

TEST(Simd, TransposeTurnsASquare) {
  constexpr int kLanes = simd::kLanes<float>;
  simd::Vec<float> rows[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) rows[i][j] = static_cast<float>(100 * i + j);
  }
  simd::transpose<float>(rows);
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) EXPECT_EQ(rows[i][j], static_cast<float>(100 * j + i));
  }
}

TEST(Simd, ExpIsWithinTwoUnitsInTheLastPlace) {
  EXPECT_LE(worst_exp_error(-87.3, 88.7, [](auto x) { return simd::exp(x); }), 2.0);
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(simd::exp(simd::broadcast(0.0f))[0], 1.0f);
  EXPECT_EQ(simd::exp(simd::broadcast(100.0f))[0], infinity);
  EXPECT_EQ(simd::exp(simd::broadcast(infinity))[0], infinity);
  EXPECT_EQ(simd::exp(simd::broadcast(-100.0f))[0], 0.0f);
  EXPECT_EQ(simd::exp(simd::broadcast(-infinity))[0], 0.0f);
  EXPECT_TRUE(std::isnan(simd::exp(simd::broadcast(std::nanf("")))[0]));
}

TEST(Simd, ExpOfAWeightIsTheSameButNeverZeroAndKeepsEveryNaN) {
  EXPECT_LE(worst_exp_error(-87.3, 88.7, [](auto x) { return simd::exp_of_weight(x); }), 2.0);
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float x : {89.0f, 1e10f, infinity}) {
    EXPECT_GT(simd::exp_of_weight(simd::broadcast(x))[0], 3.4e38f) << x;
  }
  for (const float x : {-88.0f, -1000.0f, -infinity}) {
    const float least = std::numeric_limits<float>::min();  // 2^-126
    EXPECT_NEAR(simd::exp_of_weight(simd::broadcast(x))[0], least, 1e-5 * least);
  }
  for (const char* payload : {"", "1", "0x1ff", "0x3fffff"}) {
    for (const float sign : {1.0f, -1.0f}) {
      const float nan = std::copysign(std::nanf(payload), sign);
      EXPECT_TRUE(std::isnan(simd::exp_of_weight(simd::broadcast(nan))[0])) << payload;
    }
  }
}

// --- Attention -----------------------------------------------------------------------------------

struct AttentionCase {
  int64_t N, positions, heads, D;
};
const std::vector<AttentionCase> kAttentionCases = {{1, 1, 1, 1},   {2, 7, 3, 5},    {1, 64, 4, 8},
                                                    {3, 16, 2, 16}, {1, 200, 1, 33}, {2, 96, 2, 64},
                                                    {1, 97, 1, 4},  {0, 4, 2, 8}};

template <class T>
struct AttentionData {
  Data<T> qkv, dout, out, log_sum_exp, dqkv;

  explicit AttentionData(const AttentionCase& c)
      : qkv(random_normal<T>(c.N * c.positions * c.heads * 3 * c.D, 1)),
        dout(random_normal<T>(c.N * c.positions * c.heads * c.D, 2)),
        out(unwritten<T>(c.N * c.positions * c.heads * c.D)),
        log_sum_exp(unwritten<T>(c.N * c.heads * c.positions)),
        dqkv(unwritten<T>(c.N * c.positions * c.heads * 3 * c.D)) {}

  void run_fast(const AttentionCase& c) {
    const Shape in{c.N, c.positions, c.heads * 3 * c.D}, outer{c.N, c.positions, c.heads * c.D};
    cpu().attention(view(std::as_const(qkv), in), c.heads, view(out, outer),
                    view(log_sum_exp, {c.N, c.heads, c.positions}));
    cpu().attention_backward(view(std::as_const(qkv), in), c.heads, view(std::as_const(out), outer),
                             view(std::as_const(log_sum_exp), {c.N, c.heads, c.positions}),
                             view(std::as_const(dout), outer), view(dqkv, in));
  }
};

TYPED_TEST(CpuNormKernels, AttentionEqualsThePlainOneForwardAndBackward) {
  using T = TypeParam;
  for (const AttentionCase& c : kAttentionCases) {
    SCOPED_TRACE(std::to_string(c.N) + " images, " + std::to_string(c.positions) + " positions, " +
                 std::to_string(c.heads) + " heads of " + std::to_string(c.D));
    AttentionData<T> fast(c), plain(c);
    fast.run_fast(c);
    plain_attention(c.N, c.positions, c.heads, c.D, plain.qkv.data(), plain.out.data(),
                    plain.log_sum_exp.data());
    plain_attention_backward(c.N, c.positions, c.heads, c.D, plain.qkv.data(), plain.dout.data(),
                             plain.dqkv.data());
    // Chains of D, then of T terms of size about 1, and exponentials that turn a logit's absolute
    // error into a relative one: errors of order (D + T)^(1/2) * epsilon, times a few.
    const double epsilon = static_cast<double>(std::numeric_limits<T>::epsilon());
    const double tolerance = 16 * epsilon * std::sqrt(static_cast<double>(c.D + c.positions));
    EXPECT_TRUE(within(fast.out, plain.out, tolerance)) << "out";
    EXPECT_TRUE(within(fast.log_sum_exp, plain.log_sum_exp, tolerance)) << "log_sum_exp";
    EXPECT_TRUE(within(fast.dqkv, plain.dqkv, tolerance)) << "dqkv";
  }
}

TYPED_TEST(CpuNormKernels, AttentionStandsLargeLogits) {
  using T = TypeParam;
  const AttentionCase c{1, 20, 1, 8};
  AttentionData<T> data(c);
  for (T& value : data.qkv) value *= 100;  // logits of about 30,000: exponentials must not overflow
  data.run_fast(c);
  for (const T value : data.out) EXPECT_TRUE(std::isfinite(value));
  for (const T value : data.dqkv) EXPECT_TRUE(std::isfinite(value));
}

TYPED_TEST(CpuNormKernels, AttentionDoesNotDependOnTheNumberOfThreads) {
  using T = TypeParam;
  const AttentionCase c{2, 200, 2, 24};
  expect_same_bits<T>([&] {
    AttentionData<T> data(c);
    data.run_fast(c);
    data.out.insert(data.out.end(), data.dqkv.begin(), data.dqkv.end());
    data.out.insert(data.out.end(), data.log_sum_exp.begin(), data.log_sum_exp.end());
    return data.out;
  });
}

}  // namespace
}  // namespace mutilde
