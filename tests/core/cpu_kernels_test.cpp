// The fast CPU kernels equal the plain ones (core/cpu/plain.h), for shapes that leave every tail,
// and do not depend on the number of threads.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "core/backend.h"
#include "core/cpu/plain.h"
#include "core/cpu/simd.h"
#include "core/precision.h"
#include "core/precision_scope.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mutilde {
namespace {

template <class T>
using Data = std::vector<T>;

template <class T>
Data<T> random_normal(int64_t count, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal;
  Data<T> values(static_cast<size_t>(count));
  for (T& value : values) value = static_cast<T>(normal(generator));
  return values;
}

/// Whole numbers from -3 to 3. Every partial sum of their products stays far below 2^24, so sums
/// are exact in any order, and the fast kernels must give exactly what the plain ones give.
template <class T>
Data<T> random_whole(int64_t count, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::uniform_int_distribution<int> whole(-3, 3);
  Data<T> values(static_cast<size_t>(count));
  for (T& value : values) value = static_cast<T>(whole(generator));
  return values;
}

/// Results start as this, so that an element which a kernel never writes shows.
template <class T>
Data<T> unwritten(int64_t count) {
  return Data<T>(static_cast<size_t>(count), static_cast<T>(1e30));
}

template <class T>
ConstView view(const Data<T>& data, Shape shape) {
  EXPECT_EQ(shape.numel(), static_cast<int64_t>(data.size()));
  // An empty vector's data may be null, which would read as "absent".
  static const T something = 0;
  return {data.empty() ? &something : data.data(), dtype_of<T>(), shape};
}
template <class T>
View view(Data<T>& data, Shape shape) {
  EXPECT_EQ(shape.numel(), static_cast<int64_t>(data.size()));
  return {data.data(), dtype_of<T>(), shape};
}

template <class T>
::testing::AssertionResult within(const Data<T>& fast, const Data<T>& plain, double tolerance) {
  for (size_t i = 0; i < fast.size(); ++i) {
    const double difference =
        std::abs(static_cast<double>(fast[i]) - static_cast<double>(plain[i]));
    if (!(difference <= tolerance * (1 + std::abs(static_cast<double>(plain[i]))))) {
      return ::testing::AssertionFailure() << "element " << i << " of " << fast.size() << ": fast "
                                           << fast[i] << ", plain " << plain[i];
    }
  }
  return ::testing::AssertionSuccess();
}

Backend& cpu() { return backend(Device::cpu()); }

/// Runs `kernel` on 1, 2 and 3 threads and demands the same bits.
template <class T>
void expect_same_bits(const std::function<Data<T>()>& kernel) {
#ifdef _OPENMP
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const Data<T> one = kernel();
  for (const int threads : {2, 3}) {
    omp_set_num_threads(threads);
    EXPECT_EQ(kernel(), one) << threads << " threads";
  }
  omp_set_num_threads(before);
#else
  EXPECT_EQ(kernel(), kernel());
#endif
}

/// Runs `check` with products in float32 and, if that is T, in bfloat16.
template <class T>
void in_each_precision(const std::function<void()>& check) {
  check();
  if (!std::is_same_v<T, float>) return;
  SCOPED_TRACE("in bfloat16");
  const PrecisionScope precision(Precision::kBfloat16);
  check();
}

/// x rounded to 8 bits of mantissa, to even at a tie.
float rounded_to_bf16(float x) {
  int exponent;
  const double mantissa = std::frexp(static_cast<double>(x), &exponent);
  return static_cast<float>(std::ldexp(std::nearbyint(std::ldexp(mantissa, 8)), exponent - 8));
}

template <class T>
class CpuKernels : public ::testing::Test {};
using Floats = ::testing::Types<float, double>;
class FloatNames {
 public:
  template <class T>
  static std::string GetName(int) {
    return std::is_same_v<T, float> ? "float" : "double";
  }
};
TYPED_TEST_SUITE(CpuKernels, Floats, FloatNames);

// --- Matrix products -----------------------------------------------------------------------------

TYPED_TEST(CpuKernels, MatmulIsExactForEveryTransposition) {
  using T = TypeParam;
  in_each_precision<T>(
      [] {
        struct Case {
          int64_t a_batch, b_batch, M, N, K;
        };
        for (
            const Case& c : {
                Case{1, 1, 1, 1, 1},   {1, 1, 5, 3, 7},      {1, 1, 6, 16, 4},
                {1, 1, 7, 17, 9},      {3, 3, 13, 9, 31},    {1, 4, 11, 8, 5},
                {4, 1, 5, 33, 6},      {20, 20, 4, 5, 6},    {1, 1, 203, 100, 1037},
                {2, 2, 130, 70, 513},  {1, 1, 37, 18, 2500},  // split along K where A is transposed
                {1, 1, 30, 48, 1700},                         // the same with B as it lies
                {1, 1, 129, 400, 300},                        // many panels
                {1, 1, 1700, 32, 20},                         // more tasks than threads
                {3, 3, 20, 32, 70},    {1, 1, 3, 4, 0},      {1, 1, 3, 64, 0},
                {2, 2, 0, 4, 3},       {2, 2, 4, 0, 3},      {0, 0, 4, 4, 4}}) {
          for (const bool transpose_a : {false, true}) {
            for (const bool transpose_b : {false, true}) {
              const int64_t batch = c.a_batch == 1 ? c.b_batch : c.a_batch;
              const Data<T> a = random_whole<T>(c.a_batch * c.M * c.K, 1),
                            b = random_whole<T>(c.b_batch * c.K * c.N, 2);
              Data<T> fast = unwritten<T>(batch * c.M * c.N), plain = fast;
              cpu().matmul(
                  view(a, transpose_a ? Shape{c.a_batch, c.K, c.M} : Shape{c.a_batch, c.M, c.K}),
                  transpose_a,
                  view(b, transpose_b ? Shape{c.b_batch, c.N, c.K} : Shape{c.b_batch, c.K, c.N}),
                  transpose_b, view(fast, {batch, c.M, c.N}));
              for (int64_t i = 0; i < batch; ++i) {
                plain_matmul(c.M, c.N, c.K, a.data() + (c.a_batch == 1 ? 0 : i * c.M * c.K),
                             transpose_a, b.data() + (c.b_batch == 1 ? 0 : i * c.K * c.N),
                             transpose_b, plain.data() + i * c.M * c.N);
              }
              EXPECT_EQ(fast, plain) << batch << ": " << c.M << " x " << c.N << " x " << c.K << ", "
                                     << transpose_a << transpose_b;
            }
          }
        }
      });
}

TYPED_TEST(CpuKernels, LinearAddsTheBiasToXTimesWeightTransposed) {
  using T = TypeParam;
  in_each_precision<T>([] {
    for (const auto& [M, N, K] :
         {std::array<int64_t, 3>{1, 1, 1}, {4, 33, 17}, {32, 128, 32}, {7, 3, 600}, {0, 5, 5}}) {
      const Data<T> x = random_whole<T>(M * K, 1), weight = random_whole<T>(N * K, 2),
                    bias = random_whole<T>(N, 3);
      for (const bool with_bias : {true, false}) {
        Data<T> fast = unwritten<T>(M * N), plain = fast;
        cpu().linear(view(x, {M, K}), view(weight, {N, K}),
                     with_bias ? view(bias, {N}) : ConstView{}, {}, view(fast, {M, N}));
        plain_matmul(M, N, K, x.data(), false, weight.data(), true, plain.data());
        for (int64_t i = 0; with_bias && i < M * N; ++i)
          plain[static_cast<size_t>(i)] += bias[static_cast<size_t>(i % N)];
        EXPECT_EQ(fast, plain) << M << " x " << N << " x " << K;
      }
    }
  });
}

// A product of bfloat16 numbers is exact in float32 (8 + 8 bits). What differs from the plain sum is
// the order: at most K roundings of a partial sum, itself at most the sum of the magnitudes.
TEST(CpuKernels, ProductsInBfloat16AreThoseOfRoundedFactors) {
  for (const auto& [M, N, K] :
       {std::array<int64_t, 3>{1, 1, 1}, {13, 35, 77}, {130, 70, 1037}, {37, 18, 2500}}) {
    for (const bool transpose_a : {false, true}) {
      for (const bool transpose_b : {false, true}) {
        Data<float> a = random_normal<float>(M * K, 1), b = random_normal<float>(K * N, 2);
        Data<float> fast = unwritten<float>(M * N), plain = fast, magnitudes = fast;
        const Shape a_shape = transpose_a ? Shape{1, K, M} : Shape{1, M, K},
                    b_shape = transpose_b ? Shape{1, N, K} : Shape{1, K, N};
        {
          const PrecisionScope precision(Precision::kBfloat16);
          cpu().matmul(view(a, a_shape), transpose_a, view(b, b_shape), transpose_b,
                       view(fast, {1, M, N}));
        }
        for (Data<float>* factors : {&a, &b}) {
          for (float& x : *factors) x = rounded_to_bf16(x);
        }
        plain_matmul(M, N, K, a.data(), transpose_a, b.data(), transpose_b, plain.data());
        for (Data<float>* factors : {&a, &b}) {
          for (float& x : *factors) x = std::abs(x);
        }
        plain_matmul(M, N, K, a.data(), transpose_a, b.data(), transpose_b, magnitudes.data());
        for (size_t i = 0; i < fast.size(); ++i) {
          const double bound =
              static_cast<double>(K) * std::numeric_limits<float>::epsilon() * magnitudes[i];
          ASSERT_NEAR(fast[i], plain[i], bound)
              << M << " x " << N << " x " << K << ", element " << i;
        }
      }
    }
  }
}

// --- Convolution ---------------------------------------------------------------------------------

std::vector<PlainConv> conv_cases() {
  std::vector<PlainConv> cases;
  for (const int64_t kernel : {1, 3, 5}) {
    for (const int64_t stride : {1, 2, 3}) {
      for (const int64_t padding : {0, 1, 2}) {
        cases.push_back({2, 9, 7, 5, 6, kernel, kernel, stride, padding});
        // A small image, tails everywhere.
        cases.push_back({7, 5, 6, 19, 35, kernel, kernel, stride, padding});
      }
    }
  }
  const std::vector<PlainConv> more = {
      {1, 1, 1, 1, 1, 1, 1, 1, 0},      // one pixel, one channel
      {1, 1, 1, 3, 2, 3, 3, 1, 1},      // all taps but one outside
      {0, 8, 8, 4, 4, 3, 3, 1, 1},      // empty batch
      {1, 4, 4, 4, 0, 3, 3, 1, 1},      // no output
      {1, 20, 19, 3, 32, 3, 3, 1, 1},   // as the first layer; positions image by image
      {3, 20, 17, 32, 6, 3, 3, 1, 1},   // as the last
      {3, 17, 18, 16, 16, 3, 3, 2, 1},  // down
      {2, 6, 11, 7, 9, 1, 5, 1, 2},     // a kernel that is not square
      {2, 11, 4, 7, 9, 5, 1, 2, 2},
      {5, 4, 4, 130, 70, 3, 3, 1, 1},   // more than one part of channels each way
      {2, 3, 3, 900, 20, 3, 3, 1, 1},   // a panel cut by kernel rows
      {1, 3, 300, 2, 3, 3, 3, 1, 1},    // a row longer than a chunk
      {9, 16, 16, 17, 24, 3, 3, 1, 1},  // splits over the pixels
      {2, 2, 2, 3, 3, 2, 2, 5, 0},      // a stride larger than the image
      {2, 9, 7, 37, 5, 3, 3, 2, 1},     // few outputs of channels that fill no whole vectors
      {5, 4, 4, 128, 48, 3, 3, 1, 1},   // whole vectors of channels, more than one part of them
      {2, 9, 8, 48, 70, 5, 5, 3, 2},
      {40, 5, 5, 16, 32, 3, 3, 1, 1},  // more pixels than a block
  };
  cases.insert(cases.end(), more.begin(), more.end());
  std::erase_if(cases, [](const PlainConv& s) {
    return s.H + 2 * s.padding < s.kH || s.W + 2 * s.padding < s.kW;
  });
  return cases;
}

std::string describe(const PlainConv& s) {
  std::string text = "N H W C C_out kH kW stride padding:";
  for (const int64_t v : {s.N, s.H, s.W, s.C, s.C_out, s.kH, s.kW, s.stride, s.padding}) {
    text += " " + std::to_string(v);
  }
  return text;
}

Shape x_shape(const PlainConv& s) { return {s.N, s.H, s.W, s.C}; }
Shape weight_shape(const PlainConv& s) { return {s.C_out, s.kH, s.kW, s.C}; }
Shape out_shape(const PlainConv& s) { return {s.N, s.H_out(), s.W_out(), s.C_out}; }

TYPED_TEST(CpuKernels, Conv2dIsExact) {
  using T = TypeParam;
  in_each_precision<T>([] {
    for (const PlainConv& s : conv_cases()) {
      const Data<T> x = random_whole<T>(x_shape(s).numel(), 1),
                    weight = random_whole<T>(weight_shape(s).numel(), 2),
                    bias = random_whole<T>(s.C_out, 3);
      for (const bool with_bias : {true, false}) {
        Data<T> fast = unwritten<T>(out_shape(s).numel()), plain = fast;
        cpu().conv2d(view(x, x_shape(s)), view(weight, weight_shape(s)),
                     with_bias ? view(bias, {s.C_out}) : ConstView{}, {}, {s.stride, s.padding},
                     view(fast, out_shape(s)));
        plain_conv2d<T>(s, x.data(), weight.data(), with_bias ? bias.data() : nullptr,
                        plain.data());
        EXPECT_EQ(fast, plain) << describe(s);
      }
    }
  });
}

TYPED_TEST(CpuKernels, Conv2dBackwardInputIsExact) {
  using T = TypeParam;
  in_each_precision<T>([] {
    for (const PlainConv& s : conv_cases()) {
      const Data<T> dout = random_whole<T>(out_shape(s).numel(), 1),
                    weight = random_whole<T>(weight_shape(s).numel(), 2);
      Data<T> fast = unwritten<T>(x_shape(s).numel()), plain = fast;
      cpu().conv2d_backward_input(view(dout, out_shape(s)), view(weight, weight_shape(s)),
                                  {s.stride, s.padding}, view(fast, x_shape(s)));
      plain_conv2d_backward_input<T>(s, dout.data(), weight.data(), plain.data());
      EXPECT_EQ(fast, plain) << describe(s);
    }
  });
}

// A stride beyond the kernel leaves pixels that no tap meets. On a thread of its own, whose working memory
// no larger case has made larger: the address sanitizer sees a write past its end.
TEST(CpuKernels, PixelsWithoutATapHaveNoGradient) {
  std::thread([] {
    const PlainConv s{2, 2, 2, 3, 3, 2, 2, 5, 0};
    const Data<float> dout = random_whole<float>(out_shape(s).numel(), 1),
                      weight = random_whole<float>(weight_shape(s).numel(), 2);
    Data<float> fast = unwritten<float>(x_shape(s).numel()), plain = fast;
    cpu().conv2d_backward_input(view(dout, out_shape(s)), view(weight, weight_shape(s)),
                                {s.stride, s.padding}, view(fast, x_shape(s)));
    plain_conv2d_backward_input<float>(s, dout.data(), weight.data(), plain.data());
    EXPECT_EQ(fast, plain);
  }).join();
}

TYPED_TEST(CpuKernels, Conv2dBackwardWeightIsExact) {
  using T = TypeParam;
  in_each_precision<T>([] {
    for (const PlainConv& s : conv_cases()) {
      const Data<T> x = random_whole<T>(x_shape(s).numel(), 1),
                    dout = random_whole<T>(out_shape(s).numel(), 2);
      Data<T> fast = unwritten<T>(weight_shape(s).numel()), plain = fast;
      cpu().conv2d_backward_weight(view(x, x_shape(s)), view(dout, out_shape(s)),
                                   {s.stride, s.padding}, view(fast, weight_shape(s)));
      plain_conv2d_backward_weight<T>(s, x.data(), dout.data(), plain.data());
      EXPECT_EQ(fast, plain) << describe(s);
    }
  });
}

TYPED_TEST(CpuKernels, ProductsDoNotDependOnTheNumberOfThreads) {
  using T = TypeParam;
  in_each_precision<T>([] {
    for (const PlainConv& s : {PlainConv{5, 12, 13, 40, 70, 3, 3, 1, 1},
                               {5, 12, 13, 3, 64, 3, 3, 1, 1},
                               {5, 12, 13, 48, 6, 3, 3, 1, 1},
                               {16, 4, 4, 64, 128, 3, 3, 1, 1},
                               {5, 12, 13, 64, 64, 1, 1, 1, 0}}) {
      SCOPED_TRACE(describe(s));
      const Conv2dGeometry geometry{s.stride, s.padding};
      const Data<T> x = random_normal<T>(x_shape(s).numel(), 1),
                    weight = random_normal<T>(weight_shape(s).numel(), 2),
                    dout = random_normal<T>(out_shape(s).numel(), 3);
      expect_same_bits<T>([&] {
        Data<T> out = unwritten<T>(out_shape(s).numel());
        cpu().conv2d(view(x, x_shape(s)), view(weight, weight_shape(s)), {}, {}, geometry,
                     view(out, out_shape(s)));
        return out;
      });
      expect_same_bits<T>([&] {
        Data<T> dx = unwritten<T>(x_shape(s).numel());
        cpu().conv2d_backward_input(view(dout, out_shape(s)), view(weight, weight_shape(s)),
                                    geometry, view(dx, x_shape(s)));
        return dx;
      });
      expect_same_bits<T>([&] {
        Data<T> dweight = unwritten<T>(weight_shape(s).numel());
        cpu().conv2d_backward_weight(view(x, x_shape(s)), view(dout, out_shape(s)), geometry,
                                     view(dweight, weight_shape(s)));
        return dweight;
      });
    }
    for (const auto& size : {std::array<int64_t, 2>{780, 70}, {2100, 64}, {600, 160}}) {
      const int64_t K = size[0], M = size[1];  // clang captures no bindings
      const Data<T> a = random_normal<T>(K * M, 1);
      for (const bool transpose : {true, false}) {
        expect_same_bits<T>([&] {
          const int64_t rows = transpose ? M : K;
          Data<T> out = unwritten<T>(rows * rows);
          cpu().matmul(view(a, {1, K, M}), transpose, view(a, {1, K, M}), !transpose,
                       view(out, {1, rows, rows}));
          return out;
        });
      }
    }
  });
}

// What is drawn may not depend on how many are drawn at once.
TYPED_TEST(CpuKernels, AnImageDoesNotChangeWithItsCompany) {
  using T = TypeParam;
  for (const PlainConv& one : {PlainConv{1, 8, 8, 40, 3, 3, 3, 1, 1},
                               {1, 8, 8, 48, 3, 3, 3, 1, 1},
                               {1, 20, 17, 48, 6, 3, 3, 1, 1},
                               {1, 20, 17, 3, 32, 3, 3, 1, 1},
                               {1, 4, 4, 64, 64, 3, 3, 1, 1},
                               {1, 9, 9, 64, 48, 3, 3, 2, 1},
                               {1, 8, 8, 64, 48, 1, 1, 1, 0}}) {
    PlainConv all = one;
    all.N = 13;
    const Data<T> x = random_normal<T>(x_shape(all).numel(), 1),
                  weight = random_normal<T>(weight_shape(all).numel(), 2);
    const auto conv = [&](const PlainConv& s, const Data<T>& images) {
      Data<T> out = unwritten<T>(out_shape(s).numel());
      cpu().conv2d(view(images, x_shape(s)), view(weight, weight_shape(s)), {}, {},
                   {s.stride, s.padding}, view(out, out_shape(s)));
      return out;
    };
    const Data<T> together = conv(all, x);
    const int64_t size = x_shape(one).numel(), out_size = out_shape(one).numel();
    for (int64_t n = 0; n < all.N; ++n) {
      const Data<T> alone = conv(one, {x.begin() + n * size, x.begin() + (n + 1) * size});
      EXPECT_EQ(alone,
                Data<T>(together.begin() + n * out_size, together.begin() + (n + 1) * out_size))
          << describe(one) << ", image " << n;
    }
  }
}

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

TYPED_TEST(CpuKernels, GroupNormEqualsThePlainOneForwardAndBackward) {
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

TYPED_TEST(CpuKernels, GroupNormSurvivesAMeanFarFromZero) {
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

TYPED_TEST(CpuKernels, GroupNormDoesNotDependOnTheNumberOfThreads) {
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

TYPED_TEST(CpuKernels, SoftmaxEqualsThePlainOne) {
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

TYPED_TEST(CpuKernels, AttentionEqualsThePlainOneForwardAndBackward) {
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

TYPED_TEST(CpuKernels, AttentionStandsLargeLogits) {
  using T = TypeParam;
  const AttentionCase c{1, 20, 1, 8};
  AttentionData<T> data(c);
  for (T& value : data.qkv) value *= 100;  // logits of about 30,000: exponentials must not overflow
  data.run_fast(c);
  for (const T value : data.out) EXPECT_TRUE(std::isfinite(value));
  for (const T value : data.dqkv) EXPECT_TRUE(std::isfinite(value));
}

TYPED_TEST(CpuKernels, AttentionDoesNotDependOnTheNumberOfThreads) {
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
