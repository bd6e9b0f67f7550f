// Each rung of the ladder against the plain one, on sizes that fit no tile. (The table of ops holds
// the rung that the library picks to the formulas, and so, through these tests, the plain one too.)
#include <gtest/gtest.h>

#include "core/op_cases.h"
#include "core/ops/ops.h"
#include "cuda/cuda_backend.h"
#include "cuda/devices.h"

namespace mutilde::cuda {
namespace {

Tensor random(const Shape& shape, DType dtype, uint64_t seed) {
  return uniform(shape, -1, 1, seed).to(dtype).to(Device::cuda());
}

/// What a backend gives. Each element is a sum of at most `terms` products of at most 1.
using Compute = std::function<Tensor(Backend&, DType)>;

void check_rung(Rung rung, DType dtype, double terms, const Compute& compute) {
  use_cuda();
  CudaBackend plain(0, Rung::kPlain), other(0, rung);
  const auto expected = compute(plain, dtype).to_vector<double>();
  const auto actual = compute(other, dtype).to_vector<double>();
  // Each rung rounds each product and each of the partial sums, which are below `terms`.
  double allowed = terms * (terms + 1) * (dtype == DType::kFloat32 ? 0x1p-23 : 0x1p-52);
  // And both factors of each product to 11 bits.
  if (rung == Rung::kTensorCores) allowed += terms * 2 * 0x1p-11;
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) ASSERT_NEAR(actual[i], expected[i], allowed) << i;
}

void check_rungs(double terms, const Compute& compute) {
  check_rung(Rung::kTiled, DType::kFloat64, terms, compute);
  check_rung(Rung::kTiled, DType::kFloat32, terms, compute);
  check_rung(Rung::kTensorCores, DType::kFloat32, terms, compute);
}

TEST(CudaRungs, MatrixProductsAreThePlainOnes) {
  for (const bool transpose_a : {false, true}) {
    for (const bool transpose_b : {false, true}) {
      check_rungs(37, [=](Backend& backend, DType dtype) {
        const Tensor a = random(transpose_a ? Shape{2, 37, 65} : Shape{2, 65, 37}, dtype, 1);
        const Tensor b = random(transpose_b ? Shape{2, 70, 37} : Shape{2, 37, 70}, dtype, 2);
        const Tensor out = Tensor::empty({2, 65, 70}, dtype, Device::cuda());
        backend.matmul(a, transpose_a, b, transpose_b, out);
        return out;
      });
    }
  }
}

TEST(CudaRungs, AProductInChunksIsThePlainOne) {
  check_rungs(1003, [](Backend& backend, DType dtype) {
    const Tensor a = random({1, 3, 1003}, dtype, 1), b = random({1, 1003, 5}, dtype, 2);
    const Tensor out = Tensor::empty({1, 3, 5}, dtype, Device::cuda());
    backend.matmul(a, false, b, false, out);
    return out;
  });
}

TEST(CudaRungs, DenseLayersAreThePlainOnes) {
  check_rungs(20, [](Backend& backend, DType dtype) {
    const Tensor x = random({67, 19}, dtype, 1), weight = random({33, 19}, dtype, 2);
    const Tensor bias = random({33}, dtype, 3);
    const Tensor out = Tensor::empty({67, 33}, dtype, Device::cuda());
    backend.linear(x, weight, bias, out);
    return out;
  });
}

struct Convolution {
  Shape x, weight, out;
  Conv2dGeometry geometry;
};
const Convolution kConvolutions[] = {
    {{2, 9, 7, 5}, {67, 3, 3, 5}, {2, 9, 7, 67}, {1, 1}},
    {{1, 9, 11, 17}, {5, 3, 3, 17}, {1, 5, 6, 5}, {2, 1}},
    {{3, 5, 6, 18}, {9, 1, 1, 18}, {3, 5, 6, 9}, {1, 0}},
    {{2, 7, 5, 3}, {4, 1, 1, 3}, {2, 4, 3, 4}, {2, 0}},
};

TEST(CudaRungs, ConvolutionsAreThePlainOnes) {
  for (const Convolution& conv : kConvolutions) {
    const double taps = static_cast<double>(conv.weight.product(1, 4)) + 1;
    check_rungs(taps, [&](Backend& backend, DType dtype) {
      const Tensor x = random(conv.x, dtype, 1), weight = random(conv.weight, dtype, 2);
      const Tensor bias = random({conv.weight[0]}, dtype, 3);
      const Tensor out = Tensor::empty(conv.out, dtype, Device::cuda());
      backend.conv2d(x, weight, bias, conv.geometry, out);
      return out;
    });
  }
}

TEST(CudaRungs, GradientsOfTheInputAreThePlainOnes) {
  for (const Convolution& conv : kConvolutions) {
    check_rungs(static_cast<double>(conv.weight.product(0, 3)), [&](Backend& backend, DType dtype) {
      const Tensor dout = random(conv.out, dtype, 1), weight = random(conv.weight, dtype, 2);
      const Tensor dx = Tensor::empty(conv.x, dtype, Device::cuda());
      backend.conv2d_backward_input(dout, weight, conv.geometry, dx);
      return dx;
    });
  }
}

TEST(CudaRungs, GradientsOfTheWeightsAreThePlainOnes) {
  for (const Convolution& conv : kConvolutions) {
    check_rungs(static_cast<double>(conv.out.product(0, 3)), [&](Backend& backend, DType dtype) {
      const Tensor x = random(conv.x, dtype, 1), dout = random(conv.out, dtype, 2);
      const Tensor dweight = Tensor::empty(conv.weight, dtype, Device::cuda());
      backend.conv2d_backward_weight(x, dout, conv.geometry, dweight);
      return dweight;
    });
  }
}

}  // namespace
}  // namespace mutilde::cuda
