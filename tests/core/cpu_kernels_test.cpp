// The fast products and convolutions equal the plain ones (core/cpu/plain.h), for shapes that leave every
// tail, and depend on neither the number of threads nor the batch.
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "core/cpu/plain.h"
#include "core/plain_comparison.h"

namespace mutilde {
namespace {

using namespace testing_kernels;

template <class T>
class CpuKernels : public ::testing::Test {};
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

}  // namespace
}  // namespace mutilde
