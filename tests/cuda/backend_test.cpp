// What the table of ops does not say of the CUDA backend: random numbers, conversions, the optimiser,
// sizes over the tiles and chunks of its kernels. The CPU's kernels, which tests hold to their
// formulas, are the measure.
#include <cmath>
#include <limits>
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/op_cases.h"
#include "core/ops/ops.h"
#include "cuda/devices.h"

namespace mutilde {
namespace {

using testing::HasSubstr;

Device gpu() {
  use_cuda();
  return Device::cuda();
}

/// The bytes of a tensor: two of them are equal only if NaNs and signs of zeros are too.
std::vector<uint8_t> bytes_of(const Tensor& x) {
  const Tensor local = x.detach().to(Device::cpu());
  const auto* data = static_cast<const uint8_t*>(local.raw());
  return {data, data + local.bytes()};
}

/// |a - b| <= units rounding errors of their type, relative to the largest of b (at least 1).
void expect_near(const Tensor& a, const Tensor& b, double units) {
  ASSERT_EQ(a.shape(), b.shape());
  const double eps = b.dtype() == DType::kFloat32 ? std::numeric_limits<float>::epsilon()
                                                  : std::numeric_limits<double>::epsilon();
  const auto actual = a.to_vector<double>(), expected = b.to_vector<double>();
  double scale = 1;
  for (const double value : expected) scale = std::max(scale, std::abs(value));
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i], units * eps * scale) << "element " << i;
  }
}

Tensor random(const Shape& shape, DType dtype, uint64_t seed = 1) {
  return uniform(shape, -1, 1, seed).to(dtype);
}

constexpr RandomPosition kPositions[] = {
    {0, 0, 0}, {1, 2, 4}, {0xfedcba9876543210, 0x123456789abcdef0, 0xfffffffff0}};

TEST(CudaRandom, UniformNumbersAreTheCpusBits) {
  for (const RandomPosition& position : kPositions) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
      for (const int64_t n : {1, 4, 1003}) {
        const Tensor here = Generator(position).uniform({n}, dtype);
        const Tensor there = Generator(position).uniform({n}, dtype, gpu());
        EXPECT_EQ(bytes_of(there), bytes_of(here));
      }
    }
  }
}

TEST(CudaRandom, DropoutDropsWhatTheCpuDrops) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
    const Tensor x = random({1003}, dtype);
    for (const double p : {0.1, 0.5}) {
      EXPECT_EQ(bytes_of(dropout(x.to(gpu()), p, {7, 1, 8})), bytes_of(dropout(x, p, {7, 1, 8})));
    }
  }
}

// Both follow the definition in core/random.h to a few rounding errors: of the logarithm, whose half
// the square root passes on, of a product, and of an angle of at most 2 pi.
TEST(CudaRandom, NormalNumbersAreTheCpusToAFewRoundingErrors) {
  for (const RandomPosition& position : kPositions) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
      const Tensor here = Generator(position).normal({5003}, dtype);
      const Tensor there = Generator(position).normal({5003}, dtype, gpu());
      expect_near(there, here, 8);
    }
  }
}

TEST(CudaCast, GivesTheCpusBitsBetweenAllDtypes) {
  const double inf = std::numeric_limits<double>::infinity();
  const std::vector<double> values = {
      0,    -0.0,         0.5,        -0.5,       1.5,    254.9, 255,        256,
      -1,   -300,         3e9,        -3e9,       1e19,   -1e19, 1e30,       inf,
      -inf, std::nan(""), 1.00390625, 1.01171875, 3.4e38, 1e-40, 2147483647, -2147483648.0};
  const DType dtypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16,
                          DType::kInt32,   DType::kInt64,   DType::kUInt8};
  const Tensor exact = Tensor::from<double>({static_cast<int64_t>(values.size())}, values);
  for (const DType from : dtypes) {
    const Tensor x = exact.to(from);
    for (const DType to : dtypes) {
      const Tensor here = x.to(to), there = x.to(gpu()).to(to);
      EXPECT_EQ(there.dtype(), to);
      // A NaN's bits are each machine's own, so they are compared as numbers too.
      const auto a = here.to(DType::kFloat64).to_vector<double>();
      const auto b = there.to(Device::cpu()).to(DType::kFloat64).to_vector<double>();
      for (size_t i = 0; i < a.size(); ++i) {
        EXPECT_TRUE(a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i])))
            << name_of(from) << " to " << name_of(to) << ", " << values[i] << ": " << b[i];
      }
    }
  }
}

TEST(CudaMemory, ATensorGoesThereAndBack) {
  for (const DType dtype : {DType::kFloat64, DType::kInt64, DType::kUInt8}) {
    const Tensor x = random({3, 5}, DType::kFloat64).to(dtype);
    const Tensor there = x.to(gpu());
    EXPECT_EQ(there.device().to_string(), "cuda:0");
    EXPECT_EQ(bytes_of(there.clone()), bytes_of(x));
    const Tensor other = Tensor::zeros({3, 5}, dtype, gpu());
    other.slice(1, 3).copy_(x.slice(0, 2));
    EXPECT_EQ(bytes_of(other.slice(1, 3)), bytes_of(x.slice(0, 2)));
    EXPECT_EQ(bytes_of(other.slice(0, 1)), bytes_of(Tensor::zeros({1, 5}, dtype)));
  }
}

TEST(CudaMemory, WhatIsLiveIsCounted) {
  Backend& backend = mutilde::backend(gpu());
  const int64_t before = backend.memory_stats().live_bytes;
  const Tensor x = Tensor::zeros({1000}, DType::kFloat64, gpu());
  EXPECT_GE(backend.memory_stats().live_bytes, before + 8000);
  EXPECT_LE(backend.memory_stats().live_bytes, before + 9000);
}

TEST(CudaMemory, AnOpOnTwoDevicesNamesBoth) {
  try {
    add(Tensor::zeros({2}), Tensor::zeros({2}, DType::kFloat32, gpu()));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::AllOf(HasSubstr("cpu"), HasSubstr("cuda:0")));
  }
}

TEST(CudaDevices, AnIndexThatDoesNotExistIsNamed) {
  const int count = use_cuda().count;
  ASSERT_GE(count, 1);
  try {
    Tensor::zeros({1}, DType::kFloat32, Device::cuda(count));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("device cuda:" + std::to_string(count) + ": there"));
  }
}

// 70,001 and 5,000 terms are several chunks for the kernel, 33 outputs are not a whole block. The
// terms are at most 1 and the sums of chunks go through 64 + 8 additions, and as many again.
TEST(CudaReduce, SumsOverManyChunksAreThoseOfTheCpu) {
  struct Case {
    Shape shape;
    std::vector<int> axes;
  };
  const Case cases[] = {{{70'001}, {}},           {{5'000, 33}, {0}}, {{33, 5'000}, {1}},
                        {{3, 700, 2, 5}, {1, 3}}, {{4, 3, 300}, {0}}, {{2, 70, 130}, {1, 2}}};
  for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
    for (const Case& c : cases) {
      const Tensor x = random(c.shape, dtype);
      expect_near(sum(x.to(gpu()), c.axes), sum(x, c.axes), 300);
      EXPECT_EQ(bytes_of(max(x.to(gpu()), c.axes)), bytes_of(max(x, c.axes)));
    }
  }
}

TEST(CudaReduce, AMaximumKeepsANaN) {
  std::vector<double> values(500, 1.0);
  values[123] = std::nan("");
  const Tensor x = Tensor::from<double>({500}, values).to(gpu());
  EXPECT_TRUE(std::isnan(max(x).item()));
}

// 65 and 130 leave parts of tiles; a K of 3000 is cut into chunks.
TEST(CudaMatmul, OfSizesOverItsTilesIsTheCpus) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
    for (const bool transpose_a : {false, true}) {
      for (const bool transpose_b : {false, true}) {
        const Shape a_shape = transpose_a ? Shape{3000, 65} : Shape{65, 3000};
        const Shape b_shape = transpose_b ? Shape{130, 3000} : Shape{3000, 130};
        const Tensor a = random(a_shape, dtype), b = random(b_shape, dtype, 2);
        // Each side adds 3000 products of at most 1.
        expect_near(matmul(a.to(gpu()), b.to(gpu()), transpose_a, transpose_b),
                    matmul(a, b, transpose_a, transpose_b), 3000);
      }
    }
  }
}

TEST(CudaConv2d, OfSizesOverItsTilesIsTheCpus) {
  struct Case {
    Shape x, weight;
    int64_t stride, padding;
  };
  const Case cases[] = {{{2, 9, 7, 5}, {70, 3, 3, 5}, 1, 1},
                        {{1, 17, 9, 20}, {66, 3, 3, 20}, 2, 1},
                        {{3, 5, 8, 2}, {3, 4, 2, 2}, 3, 2}};
  for (const Case& c : cases) {
    const auto gradients = [&](Device device) {
      Tensor x = random(c.x, DType::kFloat64).to(device).set_requires_grad(true);
      Tensor weight = random(c.weight, DType::kFloat64, 2).to(device).set_requires_grad(true);
      Tensor bias = random({c.weight[0]}, DType::kFloat64, 3).to(device).set_requires_grad(true);
      const Tensor out = conv2d(x, weight, bias, c.stride, c.padding);
      out.backward(random(out.shape(), DType::kFloat64, 4).to(device));
      return std::vector<Tensor>{out, x.grad(), weight.grad(), bias.grad()};
    };
    const auto here = gradients(Device::cpu()), there = gradients(gpu());
    for (size_t i = 0; i < here.size(); ++i) expect_near(there[i], here[i], 1000);
  }
}

// More positions than a tile and than a block's rows; a head so wide that a block has one warp.
TEST(CudaAttention, OfManyPositionsAndWideHeadsIsTheCpus) {
  struct Case {
    int64_t N, positions, heads, D;
  };
  for (const Case c : {Case{2, 70, 3, 40}, Case{1, 33, 1, 1100}}) {
    const auto gradients = [&](Device device) {
      Tensor qkv = random({c.N, c.positions, c.heads * 3 * c.D}, DType::kFloat64)
                       .to(device)
                       .set_requires_grad(true);
      const Tensor out = attention(qkv, c.heads);
      out.backward(random(out.shape(), DType::kFloat64, 2).to(device));
      return std::vector<Tensor>{out, qkv.grad()};
    };
    const auto here = gradients(Device::cpu()), there = gradients(gpu());
    for (size_t i = 0; i < here.size(); ++i) expect_near(there[i], here[i], 2000);
  }
}

TEST(CudaEmbedding, AnIndexOutsideOfTheTableGivesNaNAndNoGradient) {
  Tensor weight = random({3, 2}, DType::kFloat64).to(gpu()).set_requires_grad(true);
  const Tensor index = Tensor::from<int64_t>({4}, {2, -1, 3, 2}).to(gpu());
  const Tensor out = embedding(weight, index);
  const auto values = out.to_vector<double>();
  EXPECT_TRUE(std::isnan(values[2]) && std::isnan(values[3]) && std::isnan(values[4]));
  EXPECT_EQ(values[0], values[6]);
  out.backward(Tensor::full({4, 2}, 1, DType::kFloat64, gpu()));
  EXPECT_EQ(weight.grad().to_vector<double>(), (std::vector<double>{0, 0, 0, 0, 2, 2}));
}

/// Parameters of several sizes, one of them empty, one of more than a chunk, every other without a
/// gradient; with six averages.
struct Optimised {
  static constexpr double kRates[] = {0, 0.5, 0.9, 0.99, 0.999, 0.9999};

  Optimised(DType dtype, Device device) {
    uint64_t seed = 0;
    const auto make = [&](int64_t n) { return random({n}, dtype, ++seed).to(device); };
    for (const int64_t n : {1003, 0, 1, 9000, 4096, 257}) {
      const size_t first = all.size();
      all.push_back(make(n));
      all.push_back(make(n));
      all.push_back(square(make(n)));
      all.push_back(make(n));
      for (size_t e = 0; e < std::size(kRates); ++e) all.push_back(make(n));
      averages.emplace_back(all.begin() + static_cast<int64_t>(first) + 4, all.end());
    }
    for (size_t i = 0; i < averages.size(); ++i) {
      const Tensor* of = &all[i * (4 + std::size(kRates))];
      buffers.push_back({of[0], of[1], of[2], {}, averages[i]});
      if (i % 2 == 0) buffers.back().grad = of[3];
    }
  }
  void step(const AdamWStep& step) { backend(all[0]).adamw(buffers, step, kRates); }

  std::vector<Tensor> all;
  std::vector<std::vector<View>> averages;
  std::vector<AdamWBuffers> buffers;
};

TEST(CudaAdamW, MovesEverythingAsTheCpuDoes) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
    Optimised here(dtype, Device::cpu()), there(dtype, gpu());
    const Tensor finite = Tensor::full({}, 2, DType::kFloat64, gpu());
    AdamWStep step{.lr = 0.01, .weight_decay = 0.1, .step = 3, .grad_scale = 0.5};
    here.step(step);
    step.only_if_finite = finite;
    there.step(step);
    // A few roundings; m / sqrt(v) may be 30, times a step size of 0.04.
    for (size_t i = 0; i < here.all.size(); ++i) expect_near(there.all[i], here.all[i], 8);
  }
}

TEST(CudaAdamW, MovesNothingWhenItIsToldThatTheGradientIsNotFinite) {
  for (const double value : {std::numeric_limits<double>::infinity(), std::nan("")}) {
    Optimised moved(DType::kFloat32, gpu()), untouched(DType::kFloat32, gpu());
    const Tensor not_finite = Tensor::full({}, value, DType::kFloat64, gpu());
    moved.step({.lr = 0.01, .step = 3, .only_if_finite = not_finite});
    for (size_t i = 0; i < moved.all.size(); ++i)
      EXPECT_EQ(bytes_of(moved.all[i]), bytes_of(untouched.all[i]));
  }
}

// 14,359 squares of at most 1 are added in float64. On the CPU each term goes through at most 256
// additions in its lane and some 40 more, on the GPU through fewer: each rounds by 2^-53 of the sum.
TEST(CudaSumOfSquares, OfManyTensorsIsTheCpus) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
    std::vector<Tensor> here, there;
    for (const int64_t n : {1003, 0, 1, 9000, 4096, 257, 1}) {
      here.push_back(random({n}, dtype, static_cast<uint64_t>(n)));
      there.push_back(here.back().to(gpu()));
    }
    const auto total = [](const std::vector<Tensor>& tensors) {
      const Device device = tensors[0].device();
      const Tensor out = Tensor::full({}, 7, DType::kFloat64, device);
      const std::vector<ConstView> views(tensors.begin(), tensors.end());
      backend(device).sum_of_squares(views, out);
      return out.item();
    };
    EXPECT_NEAR(total(there), total(here), 2 * 296 * 0x1p-53 * total(here));
    here.back() = Tensor::full({1}, std::numeric_limits<double>::infinity(), dtype);
    there.back() = here.back().to(gpu());
    EXPECT_FALSE(std::isfinite(total(there)));
  }
  const Tensor out = Tensor::full({}, 7, DType::kFloat64, gpu());
  backend(gpu()).sum_of_squares({}, out);
  EXPECT_EQ(out.item(), 0);
}

// More than the pinned memory that is kept for copies on their way, from memory that is overwritten
// at once: each copy has what was there when it was asked for.
TEST(CudaMemory, ACopyFromTheHostDoesNotNeedTheHostsMemoryAfterwards) {
  constexpr int64_t kElements = 5 << 20;  // 40 MiB: pieces of 16
  const Tensor host = Tensor::empty({kElements}, DType::kInt64);
  std::vector<Tensor> there;
  for (int64_t round = 0; round < 3; ++round) {
    std::iota(host.values<int64_t>().begin(), host.values<int64_t>().end(), round << 32);
    there.push_back(host.to(gpu()));
  }
  for (int64_t round = 0; round < 3; ++round) {
    const std::vector<int64_t> values = there[static_cast<size_t>(round)].to_vector<int64_t>();
    int64_t wrong = 0;
    for (int64_t i = 0; i < kElements; ++i)
      wrong += values[static_cast<size_t>(i)] != (round << 32) + i ? 1 : 0;
    EXPECT_EQ(wrong, 0);
  }
}

TEST(CudaMemory, ACopyToTheHostIsOfWhatWasThereWhenItWasStarted) {
  const Tensor there = Tensor::full({100}, 3, DType::kFloat64, gpu());
  const Tensor here = Tensor::zeros({100}, DType::kFloat64);
  const auto wait = backend(gpu()).start_copy_to_host(there.raw(), here.raw(), here.bytes());
  backend(gpu()).fill(4, there);
  EXPECT_EQ(here.to_vector<double>(), std::vector<double>(100, 0.0));
  wait();
  EXPECT_EQ(here.to_vector<double>(), std::vector<double>(100, 3.0));
}

}  // namespace
}  // namespace mutilde
