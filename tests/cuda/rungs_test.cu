// Each rung of the ladder against the plain one, on sizes that fit no tile. (The table of ops holds
// the rung that the library picks to the formulas, and so, through these tests, the plain one too.)
#include <array>
#include <cmath>

#include <gtest/gtest.h>

#include "core/op_cases.h"
#include "core/ops/ops.h"
#include "core/precision_scope.h"
#include "cuda/cuda_backend.h"
#include "cuda/devices.h"
#include "cuda/hopper/hopper.h"
#include "cuda/matmul_ladder.h"
#include "tests/cuda/short_types.h"
#ifndef __CUDACC__
#include "tests/cuda/emulation/fault_testing.h"
#endif

namespace mutilde::cuda {
namespace {

/// Makes an input from its shape and a number of its own.
struct Make {
  std::function<Tensor(const Shape&, uint64_t, DType)> make;
  DType dtype;

  Tensor operator()(const Shape& shape, uint64_t seed) const { return make(shape, seed, dtype); }
  /// Of a parameter, which is float32 where activations are of a short type.
  Tensor parameter(const Shape& shape, uint64_t seed) const {
    return make(shape, seed, is_short(dtype) ? DType::kFloat32 : dtype);
  }
};

/// Multiples of 1/8 in [-1, 1]: the short types have them, and tf32, and a float32 all sums of up to 2^17 of
/// their products, multiples of 1/64. So there is nothing to round, in whatever order one adds.
Make exact_numbers(DType dtype) {
  const auto make = [](const Shape& shape, uint64_t seed, DType type) {
    std::vector<double> values = uniform(shape, -8.5, 8.5, seed).to_vector<double>();
    for (double& value : values) value = std::round(value) / 8;
    return Tensor::from(shape, values).to(type).to(Device::cuda());
  };
  return {make, dtype};
}

/// In [-1, 1], of the digits of a type.
Make any_numbers(DType digits, DType dtype) {
  const auto make = [=](const Shape& shape, uint64_t seed, DType type) {
    return uniform(shape, -1, 1, seed).to(digits).to(type).to(Device::cuda());
  };
  return {make, dtype};
}

/// What a backend computes of inputs that it asks for.
using Compute = std::function<Tensor(Backend&, const Make&)>;

std::vector<double> result(Rung rung, Precision precision, const Compute& compute,
                           const Make& make) {
  const PrecisionScope scope(precision);
  CudaBackend backend(0, rung);
  return compute(backend, make).to_vector<double>();
}

struct Variant {
  Rung rung;
  DType dtype;
  Precision precision;
};
constexpr Variant kVariants[] = {{Rung::kTiled, DType::kFloat64, Precision::kFloat32},
                                 {Rung::kTiled, DType::kFloat32, Precision::kFloat32},
                                 {Rung::kWmma, DType::kFloat32, Precision::kFloat32},
                                 {Rung::kWmma, DType::kFloat32, Precision::kBfloat16},
                                 {Rung::kWmma, DType::kFloat32, Precision::kFloat16},
                                 {Rung::kTiled, DType::kBFloat16, Precision::kBfloat16},
                                 {Rung::kTiled, DType::kFloat16, Precision::kFloat16},
                                 {Rung::kWmma, DType::kBFloat16, Precision::kBfloat16},
                                 {Rung::kWmma, DType::kFloat16, Precision::kFloat16}};

/// The short type that a variant's products may round their factors to, if any.
const ShortType* factors_of(const Variant& v) {
  for (const ShortType& type : kShortTypes) {
    if (type.precision == v.precision) return &type;
  }
  return nullptr;
}

std::string name_of(const Variant& v) {
  return fmt::format("{} on the {} rung, products of {}", name_of(v.dtype),
                     v.rung == Rung::kTiled    ? "tiled"
                     : v.rung == Rung::kHopper ? "Hopper's"
                     : v.rung == Rung::kMma    ? "mma"
                                               : "tensor cores'",
                     factors_of(v) != nullptr ? name_of(factors_of(v)->dtype) : "float32");
}

/// Hopper's kernels run on its GPUs alone; emulated the GPU is what a test asks for.
class GpuFor {
 public:
  explicit GpuFor(Rung rung, bool reverse = false)
      : rung_(rung) {  // the scope has saved the options
#ifndef __CUDACC__
    emulation::options().hopper = rung == Rung::kHopper;
    if (reverse) emulation::options().order = emulation::Order::kReverse;
#endif
  }
  bool is_here() const { return rung_ != Rung::kHopper || is_hopper(); }

 private:
  Rung rung_;
#ifndef __CUDACC__
  emulation::OptionsScope scope_;
#endif
};

/// Each number of the plain rung's, up to `allowed`.
void expect_plain(const Variant& v, const Compute& compute, const Make& make, double allowed,
                  bool reverse = false) {
  const GpuFor gpu(v.rung, reverse);
  if (!gpu.is_here()) return;
  const auto expected = result(Rung::kPlain, Precision::kFloat32, compute, make);
  const auto actual = result(v.rung, v.precision, compute, make);
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::abs(actual[i] - expected[i]) <= allowed) continue;
    FAIL() << name_of(v) << (reverse ? ", threads in reverse" : "") << ": element " << i << " is "
           << actual[i] << ", not " << expected[i];
  }
}

/// The rung gives the plain one's bits where nothing is rounded, so that no product may be missing,
/// twice there or in another's place; and on other numbers what rounding allows. Each element is a sum
/// of at most `terms` products of at most 1.
void check_rung(const Variant& v, double terms, const Compute& compute) {
  expect_plain(v, compute, exact_numbers(v.dtype), 0);
#ifndef __CUDACC__
  // In one of the two orders of threads a missing barrier shows.
  if (multiplies_short(v.rung)) expect_plain(v, compute, exact_numbers(v.dtype), 0, true);
#endif
  // Each rung rounds each product and each of the partial sums, which are below `terms`.
  double sums = terms * (terms + 1) * (v.dtype == DType::kFloat64 ? 0x1p-52 : 0x1p-23);
  // And a result that is stored in a short type to one of its neighbours, which two sums may find different.
  const ShortType* type = factors_of(v);
  if (is_short(v.dtype)) sums += terms * type->half_unit;
  // And tensor cores both factors of each product to 11 or 8 bits, at most 1.
  double factors = 0;
  if (type != nullptr) {
    expect_plain(v, compute, any_numbers(type->dtype, v.dtype), sums);
    if (v.rung != Rung::kTiled) factors = type->half_unit / 2;
  } else if (v.rung == Rung::kWmma) {
    factors = 0x1p-12;
  }
  expect_plain(v, compute, any_numbers(v.dtype, v.dtype),
               sums + terms * (2 * factors + factors * factors));
}

void check_rungs(double terms, const Compute& compute) {
  use_cuda();
  for (const Variant& v : kVariants) check_rung(v, terms, compute);
}

Tensor empty_like(const Tensor& x, const Shape& shape) {
  return Tensor::empty(shape, x.dtype(), Device::cuda());
}

/// a: [batch, M, K], b: [batch, K, N].
Compute product(int64_t batch, int64_t M, int64_t N, int64_t K, bool transpose_a,
                bool transpose_b) {
  return [=](Backend& backend, const Make& make) {
    const Tensor a = make(transpose_a ? Shape{batch, K, M} : Shape{batch, M, K}, 1);
    const Tensor b = make(transpose_b ? Shape{batch, N, K} : Shape{batch, K, N}, 2);
    const Tensor out = empty_like(a, {batch, M, N});
    backend.matmul(a, transpose_a, b, transpose_b, out);
    return out;
  };
}

Compute dense_layer(int64_t M, int64_t N, int64_t K) {
  return [=](Backend& backend, const Make& make) {
    const Tensor x = make({M, K}, 1), weight = make.parameter({N, K}, 2);
    const Tensor bias = make.parameter({N}, 3), residual = make({M, N}, 4);
    const Tensor out = empty_like(x, {M, N});
    backend.linear(x, weight, bias, residual, out);
    return out;
  };
}

Compute dense_backward_input(int64_t M, int64_t N, int64_t K) {
  return [=](Backend& backend, const Make& make) {
    const Tensor dout = make({1, M, N}, 1), weight = make.parameter({1, N, K}, 2);
    const Tensor dx = empty_like(dout, {1, M, K});
    backend.matmul(dout, false, weight, false, dx);
    return dx;
  };
}

Compute dense_backward_weight(int64_t M, int64_t N, int64_t K) {
  return [=](Backend& backend, const Make& make) {
    const Tensor dout = make({1, M, N}, 1), x = make({1, M, K}, 2);
    const Tensor dweight = make.parameter({1, N, K}, 3);  // to be overwritten
    backend.matmul(dout, true, x, false, dweight);
    return dweight;
  };
}

struct Convolution {
  Shape x, weight, out;
  Conv2dGeometry geometry;
};

Compute forward(const Convolution& conv, bool has_residual = false) {
  return [=](Backend& backend, const Make& make) {
    const Tensor x = make(conv.x, 1), weight = make.parameter(conv.weight, 2);
    const Tensor bias = make.parameter({conv.weight[0]}, 3), out = empty_like(x, conv.out);
    const Tensor residual = has_residual ? make(conv.out, 4) : Tensor{};
    const ConstView added = has_residual ? ConstView(residual) : ConstView{};
    backend.conv2d(x, weight, bias, added, conv.geometry, out);
    return out;
  };
}

Compute backward_input(const Convolution& conv) {
  return [=](Backend& backend, const Make& make) {
    const Tensor dout = make(conv.out, 1), weight = make.parameter(conv.weight, 2);
    const Tensor dx = empty_like(dout, conv.x);
    backend.conv2d_backward_input(dout, weight, conv.geometry, dx);
    return dx;
  };
}

Compute backward_weight(const Convolution& conv) {
  return [=](Backend& backend, const Make& make) {
    const Tensor x = make(conv.x, 1), dout = make(conv.out, 2);
    const Tensor dweight = make.parameter(conv.weight, 3);  // to be overwritten
    backend.conv2d_backward_weight(x, dout, conv.geometry, dweight);
    return dweight;
  };
}

TEST(CudaRungs, MatrixProductsAreThePlainOnes) {
  for (const bool transpose_a : {false, true}) {
    for (const bool transpose_b : {false, true})
      check_rungs(37, product(2, 65, 70, 37, transpose_a, transpose_b));
  }
}

// Three chunks, of 335, 335 and 333 k.
TEST(CudaRungs, AProductInChunksIsThePlainOne) {
  check_rungs(1003, product(1, 3, 5, 1003, false, false));
}

TEST(CudaRungs, DenseLayersAndTheirGradientsAreThePlainOnes) {
  check_rungs(21, dense_layer(67, 33, 19));
  check_rungs(33, dense_backward_input(67, 33, 19));
  check_rungs(67, dense_backward_weight(67, 33, 19));
}

TEST(CudaRungs, ConvolutionsAndTheirGradientsAreThePlainOnes) {
  const Convolution convolutions[] = {
      {{2, 9, 7, 5}, {67, 3, 3, 5}, {2, 9, 7, 67}, {1, 1}},
      {{1, 9, 11, 17}, {5, 3, 3, 17}, {1, 5, 6, 5}, {2, 1}},
      {{3, 5, 6, 18}, {9, 1, 1, 18}, {3, 5, 6, 9}, {1, 0}},
      {{2, 7, 5, 3}, {4, 1, 1, 3}, {2, 4, 3, 4}, {2, 0}},
      // 627 pixels: the gradient of the weight is cut into two chunks, within a row of an image.
      {{3, 19, 11, 2}, {3, 3, 3, 2}, {3, 19, 11, 3}, {1, 1}},
  };
  for (const Convolution& conv : convolutions) {
    check_rungs(double(conv.weight.product(1, 4)) + 1, forward(conv));
    check_rungs(double(conv.weight.product(1, 4)) + 2, forward(conv, true));
    check_rungs(double(conv.weight.product(0, 3)), backward_input(conv));
    check_rungs(double(conv.out.product(0, 3)), backward_weight(conv));
  }
}

constexpr Rung kShortRungs[] = {Rung::kMma, Rung::kHopper};  // those that multiplies_short() names

/// In the short types as it lies, and in float32 rounded on the way.
void check_short_rungs(double terms, const Compute& compute) {
  for (const Rung rung : kShortRungs) {
    for (const ShortType& type : kShortTypes) {
      check_rung({rung, type.dtype, type.precision}, terms, compute);
      check_rung({rung, DType::kFloat32, type.precision}, terms, compute);
    }
  }
}

// Sizes that they take: over, under and across tiles of 128 and 64.
TEST(CudaRungs, ShortMatrixProductsAreThePlainOnes) {
  use_cuda();
  struct Sizes {
    int M, N, K;
  };
  constexpr Sizes kSizes[] = {
      {1, 8, 8}, {128, 128, 64}, {136, 200, 72}, {64, 8, 1000}, {300, 520, 16}};
  for (const auto& [M, N, K] : kSizes) {
    check_short_rungs(K + 2, dense_layer(M, N, K));
    check_short_rungs(N, dense_backward_input(M, N, K));
    check_short_rungs(M, dense_backward_weight(M, N, K));
  }
  // In a short type they leave this one to wmma.
  check_short_rungs(74, dense_layer(129, 34, 72));
}

const auto kName = [](const auto& info) {
  const Convolution& conv = info.param;
  return fmt::format("{}x{}x{}x{}_to_{}_by_{}x{}_stride_{}_padding_{}", conv.x[0], conv.x[1],
                     conv.x[2], conv.x[3], conv.weight[0], conv.weight[1], conv.weight[2],
                     conv.geometry.stride, conv.geometry.padding);
};

// A test each: emulated they take long, and side by side less.
class ShortConvolution : public ::testing::TestWithParam<Convolution> {};

TEST_P(ShortConvolution, AndItsGradientsAreThePlainOnes) {
  use_cuda();
  const Convolution& conv = GetParam();
  // float32 is rounded on its way to either type by the kernels that dense layers are tested with: here to
  // one. Large ones are products of one type only; both are of the same template.
#ifdef __CUDACC__
  const bool large = false;
#else
  const bool large = conv.out.numel() * conv.weight.product(1, 4) > 3'000'000;
#endif
  for (const ShortType& type : kShortTypes) {
    if (large && type.dtype != DType::kBFloat16) continue;
    for (const DType dtype : {type.dtype, DType::kFloat32}) {
      if (dtype == DType::kFloat32 && type.dtype != DType::kBFloat16) continue;
      for (const Rung rung : kShortRungs) {
        const Variant variant{rung, dtype, type.precision};
        check_rung(variant, double(conv.weight.product(1, 4)) + 1, forward(conv));
        check_rung(variant, double(conv.weight.product(1, 4)) + 2, forward(conv, true));
        check_rung(variant, double(conv.weight.product(0, 3)), backward_input(conv));
        check_rung(variant, double(conv.out.product(0, 3)), backward_weight(conv));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cuda, ShortConvolution,
    ::testing::Values(
        Convolution{{3, 8, 8, 72}, {136, 3, 3, 72}, {3, 8, 8, 136}, {1, 1}},  // images share a tile
        Convolution{{2, 9, 11, 8}, {8, 3, 3, 8}, {2, 5, 6, 8}, {2, 1}},       // every other pixel
        // With a last pixel that none meets.
        Convolution{{2, 8, 10, 16}, {8, 3, 3, 16}, {2, 4, 5, 8}, {2, 1}},
        Convolution{{3, 17, 5, 136}, {64, 1, 1, 136}, {3, 17, 5, 64}, {1, 0}},  // an odd size
        Convolution{{1, 3, 150, 8}, {16, 3, 3, 8}, {1, 3, 150, 16}, {1, 1}},    // wider than a tile
        Convolution{
            {2, 6, 6, 3}, {6, 3, 3, 3}, {2, 4, 4, 6}, {1, 0}},  // channels of zeros fill rows
        // And those of dout, of every other pixel.
        Convolution{{2, 5, 7, 16}, {6, 3, 3, 16}, {2, 3, 4, 6}, {2, 1}},
        // Of the four kinds of input pixels one alone meets the tap.
        Convolution{{2, 6, 5, 16}, {8, 1, 1, 16}, {2, 3, 3, 8}, {2, 0}},
        // No square, with an even size, and a padding that is a kernel's height.
        Convolution{{2, 6, 7, 8}, {8, 2, 5, 8}, {2, 5, 4, 8}, {2, 2}},
        // A column, of every other pixel.
        Convolution{{3, 300, 1, 8}, {8, 3, 3, 8}, {3, 150, 1, 8}, {2, 1}}),
    kName);

// The more tiles a product has the larger they may be, where there are enough for all multiprocessors: here of 128 x 256,
// of 256 x 128 and of 128 x 128 two a multiprocessor. An image is a tile's 128 pixels, but for its edges.
TEST(CudaRungs, TilesOfEverySizeGiveThePlainProducts) {
  use_cuda();
  const int64_t enough = ceil_div(multiprocessors() * 9, 10);
  const std::array<int64_t, 2> sizes[] = {
      {enough, 256}, {2 * enough, 128}, {multiprocessors() + 1, 128}};
  for (const auto& [N, columns] : sizes) {
    for (const int64_t stride : {1, 2}) {
      const Shape many{N, 7, 15, columns}, few{N, 7, 15, 8};
      const int64_t H = stride == 1 ? 7 : 4, W = stride == 1 ? 15 : 8;
      const Convolution to_many{few, {columns, 3, 3, 8}, {N, H, W, columns}, {stride, 1}};
      const Convolution of_many{many, {8, 3, 3, columns}, {N, H, W, 8}, {stride, 1}};
      for (const Rung rung : kShortRungs) {
        for (const ShortType& type : kShortTypes) {
          const Variant variant{rung, type.dtype, type.precision};
          expect_plain(variant, forward(to_many), exact_numbers(type.dtype), 0);
          expect_plain(variant, backward_input(of_many), exact_numbers(type.dtype), 0);
        }
      }
    }
  }
}

TEST(CudaRungs, HoppersMatmulIsTheLaddersThird) {
  use_cuda();
  const GpuFor gpu(Rung::kHopper);
  if (!gpu.is_here()) GTEST_SKIP() << "this GPU has no wgmma";
  constexpr int kSizes[][3] = {{1, 8, 8}, {128, 256, 64}, {200, 264, 136}};
  const auto check = [&](auto zero) {
    using E = decltype(zero);
    const Make make = exact_numbers(short_dtype<E>());
    for (const auto& size : kSizes) {
      const int M = size[0], N = size[1], K = size[2];
      const Tensor a = make({M, K}, 1), b = make({K, N}, 2);
      const auto multiply = [&](auto matmul) {
        const Tensor out = Tensor::empty({M, N}, DType::kFloat32, Device::cuda());
        matmul(static_cast<const E*>(a.raw()), static_cast<const E*>(b.raw()),
               static_cast<float*>(out.raw()), M, N, K, nullptr);
        return out.to_vector<float>();
      };
      EXPECT_EQ(multiply(matmul_wgmma<E>), multiply(matmul_wmma<E>));
    }
  };
  check(__nv_bfloat16{});
  check(__half{});
}

// A weight's copy in the one type is no factor of products in the other.
TEST(CudaRungs, NoneTakesACopyOfAnotherType) {
  use_cuda();
  for (const Rung rung : kShortRungs) {
    const GpuFor gpu(rung);
    if (!gpu.is_here()) continue;
    for (const ShortType& type : kShortTypes) {
      const auto multiply = [&](DType copy) {
        return result(
            rung, type.precision,
            [&](Backend& backend, const Make& make) {
              const Tensor x = make({3, 16}, 1), weight = make({8, 16}, 2);
              const Tensor out = empty_like(x, {3, 8}), shortened = weight.shortened(copy);
              ConstView factor = weight;
              factor.short_copy = shortened.raw();
              factor.short_type = copy;
              backend.linear(x, factor, {}, {}, out);
              return out;
            },
            any_numbers(DType::kFloat32, DType::kFloat32));
      };
      EXPECT_EQ(multiply(DType::kBFloat16), multiply(DType::kFloat16));
    }
  }
}

TEST(CudaRungs, HoppersKernelsRefuseWhatTheyCannotCopy) {
  const GpuFor gpu(Rung::kHopper);
  if (!gpu.is_here()) GTEST_SKIP() << "this GPU has no wgmma";
  const __half* in = nullptr;
  EXPECT_THROW(matmul_wgmma(in, in, nullptr, 8, 12, 8, nullptr), Error);
  EXPECT_THROW(matmul_wgmma(in, in, nullptr, 8, 8, 7, nullptr), Error);
  const ConvSizes channels{8, 8, 3, 8, 8, 8, 3, 3, 1, 1}, stride{9, 9, 8, 3, 3, 8, 3, 3, 3, 1};
  for (const ConvSizes& s : {channels, stride}) {
    float* out = nullptr;
    EXPECT_THROW(conv2d_wgmma(s, 1, in, in, nullptr, out, out, nullptr), Error);
    EXPECT_THROW(conv2d_backward_input_wgmma(s, 1, in, in, out, nullptr), Error);
    EXPECT_THROW(conv2d_backward_weight_wgmma(s, 1, in, in, nullptr, nullptr), Error);
  }
}

// With u half of the last bit, 1 + u is half way between 1 and its neighbour 1 + 2 u, and the even one of the two
// is 1; 1 + 2 u has a product with itself that only float32 holds.
void check_rounding_of_factors(const ShortType& type) {
  const double u = type.half_unit;
  for (const Rung rung : {Rung::kAutomatic, Rung::kWmma, Rung::kMma, Rung::kHopper}) {
    const GpuFor gpu(rung);
    if (!gpu.is_here()) continue;
    const std::array<double, 3> products[] = {
        {1 + u, 1, 1}, {1, 1 + u, 1}, {1 + 2 * u, 1 + 2 * u, 1 + 4 * u + 4 * u * u}};
    for (const auto& [a, b, product] : products) {
      const auto multiply = [a = a, b = b](Backend& backend, const Make&) {
        const Tensor x = Tensor::full({1, 8, 8}, a, DType::kFloat32).to(Device::cuda());
        std::vector<float> row(64);  // of y, the first; the others are zeros
        std::fill_n(row.begin(), 8, static_cast<float>(b));
        const Tensor y = Tensor::from({1, 8, 8}, row).to(Device::cuda());
        const Tensor out = empty_like(x, {1, 8, 8});
        backend.matmul(x, false, y, false, out);
        return out;
      };
      EXPECT_EQ(result(rung, type.precision, multiply, {}), std::vector<double>(64, product));
    }
  }
}

TEST(CudaRungs, BothFactorsOfAShortProductAreRoundedAndTheirProductIsNot) {
  use_cuda();
  for (const ShortType& type : kShortTypes) check_rounding_of_factors(type);
}

TEST(CudaRungs, ProductsOfFloat64AreFloat64s) {
  use_cuda();
  const Compute multiply = dense_layer(3, 8, 40);
  const Make any = any_numbers(DType::kFloat64, DType::kFloat64);
  for (const Rung rung : {Rung::kAutomatic, Rung::kPlain, Rung::kWmma, Rung::kHopper}) {
    for (const ShortType& type : kShortTypes) {
      EXPECT_EQ(result(rung, type.precision, multiply, any),
                result(rung, Precision::kFloat32, multiply, any));
    }
  }
}

}  // namespace
}  // namespace mutilde::cuda
