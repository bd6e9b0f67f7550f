// What the table of ops cannot say: errors, ties, conversions, and what an
// op does not save or compute.
#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/op_cases.h"
#include "core/ops/ops.h"

namespace mutilde {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Eq;
using ::testing::HasSubstr;

template <class ErrorType, class F>
std::string message_of(const F& f) {
  try {
    f();
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "(nothing was thrown)";
}

Tensor wanted(Tensor x) {
  x.set_requires_grad(true);
  return x;
}

TEST(Conv2d, SaysWhichChannelsWereGivenAndExpected) {
  const Tensor x = Tensor::zeros({8, 32, 32, 3}), weight = Tensor::zeros({64, 3, 3, 4});
  EXPECT_EQ(
      message_of<ShapeError>([&] { conv2d(x, weight, {}); }),
      "conv2d: input has 3 channels, weight expects 4 (input [8,32,32,3], weight [64,3,3,4])");
}

TEST(Conv2d, RefusesAKernelThatDoesNotFitAndOddGeometry) {
  const Tensor x = Tensor::zeros({1, 2, 2, 3}), weight = Tensor::zeros({4, 3, 3, 3});
  EXPECT_THAT(message_of<ShapeError>([&] { conv2d(x, weight, {}); }), HasSubstr("does not fit"));
  EXPECT_THROW(conv2d(x, weight, {}, 0, 1), ShapeError);
  EXPECT_THROW(conv2d(x, weight, {}, 1, -1), ShapeError);
  EXPECT_THROW(conv2d(x, weight, Tensor::zeros({5}), 1, 1), ShapeError);
  EXPECT_THROW(conv2d(Tensor::zeros({2, 2, 3}), weight, {}, 1, 1), ShapeError);
}

TEST(BinaryOps, RefuseShapesThatDoNotBroadcastAndMixedDTypes) {
  const Tensor x = Tensor::zeros({3, 4});
  EXPECT_THAT(message_of<ShapeError>([&] { x + Tensor::zeros({3}); }),
              HasSubstr("add: shapes [3,4] and [3] do not broadcast"));
  EXPECT_EQ(message_of<DTypeError>([&] { mul(x, x.to(DType::kFloat64)); }),
            "mul: b is float64, the first input is float32");
  EXPECT_EQ(message_of<DTypeError>([] { exp(Tensor::arange(3)); }),
            "exp: x is int64, float32 or float64 is expected");
  EXPECT_EQ(message_of<Error>([] { silu(Tensor{}); }), "silu: x is undefined");
}

// Where there are no kernels for it, a short type is refused by the op, and not by a kernel that cannot
// say which op it serves. (Some ops only move elements, and take it.)
TEST(ShortTypes, AreRefusedByEveryOpThatComputesAndTheOpIsNamed) {
  EXPECT_EQ(message_of<DTypeError>([] { exp(Tensor::zeros({2}).to(DType::kBFloat16)); }),
            "exp: x is bfloat16, float32 or float64 is expected");
  for (const DType type : {DType::kBFloat16, DType::kFloat16}) {
    int refused = 0;
    for (const OpCase& row : op_cases()) {
      Tensors inputs = row.inputs;
      for (Tensor& input : inputs) {
        if (is_floating(input.dtype())) input = input.to(type);
      }
      try {
        row.op(inputs);
      } catch (const DTypeError& error) {
        ++refused;
        EXPECT_THAT(error.what(), HasSubstr(name_of(type))) << row.name;
        EXPECT_THAT(error.what(), ::testing::Not(HasSubstr("cpu kernel"))) << row.name;
      }
    }
    EXPECT_GT(refused, 40);
  }
}

TEST(MatrixProducts, SayWhichSizesDoNotMeet) {
  EXPECT_EQ(message_of<ShapeError>([] {
              matmul(Tensor::zeros({2, 3}), Tensor::zeros({2, 3}), true, true);
            }),
            "matmul: a has inner size 2, b has 3 (a [2,3] transposed, b [2,3] transposed)");
  EXPECT_THROW(matmul(Tensor::zeros({2, 3, 4}), Tensor::zeros({3, 4, 5})), ShapeError);
  EXPECT_THROW(matmul(Tensor::zeros({3}), Tensor::zeros({3, 4})), ShapeError);
  EXPECT_EQ(message_of<ShapeError>([] {
              linear(Tensor::zeros({2, 3}), Tensor::zeros({4, 5}), {});
            }),
            "linear: x is [2,3], [.., 5] is expected (weight [4,5])");
}

TEST(MatrixProducts, OverNoTermsAreZero) {
  const Tensor a = wanted(Tensor::zeros({2, 0})), b = wanted(Tensor::zeros({0, 3}));
  const Tensor out = matmul(a, b);
  EXPECT_EQ(out.shape(), (Shape{2, 3}));
  EXPECT_THAT(out.to_vector<double>(), Each(Eq(0.0)));
  out.backward(Tensor::full({2, 3}, 1));
  EXPECT_EQ(a.grad().shape(), (Shape{2, 0}));
}

TEST(Layout, RefusesWhatDoesNotFit) {
  const Tensor x = Tensor::zeros({2, 3, 4});
  EXPECT_EQ(message_of<ShapeError>([&] {
              x.reshape({5, 5});
            }),
            "reshape: [2,3,4] has 24 elements, [5,5] has 25");
  EXPECT_THROW(x.slice(1, 3), ShapeError);
  EXPECT_THROW(x.slice(1, 0), ShapeError);
  EXPECT_THROW(permute(x, {0, 1}), ShapeError);
  EXPECT_THROW(permute(x, {0, 1, 1}), ShapeError);
  EXPECT_THROW(permute(x, {0, 1, 3}), ShapeError);
  EXPECT_THROW(concat({}), Error);
  EXPECT_THAT(message_of<ShapeError>([&] {
                concat({x, Tensor::zeros({2, 2, 4})});
              }),
              HasSubstr("concat: part 1 is [2,2,4], part 0 is [2,3,4]"));
  EXPECT_THROW(slice_channels(x, 3, 5), ShapeError);
  EXPECT_THROW(split(x, 3), ShapeError);
  EXPECT_THROW(broadcast_to(x, {2, 3, 1}), ShapeError);
}

TEST(Reductions, RefuseMissingAndRepeatedAxesAndTheMaximumOfNothing) {
  const Tensor x = Tensor::zeros({2, 0, 3});
  EXPECT_THROW(sum(x, {3}), ShapeError);
  EXPECT_THROW(sum(x, {1, -2}), ShapeError);
  EXPECT_THROW(max(x, {1}), ShapeError);
  EXPECT_THROW(mean(x), ShapeError);
  EXPECT_EQ(sum(x).item(), 0);
  EXPECT_EQ(max(x, {0}).shape(), (Shape{0, 3}));
}

TEST(NetworkOps, RefuseCountsThatDoNotDivide) {
  const Tensor x = Tensor::zeros({2, 6, 6, 10}), c = Tensor::zeros({10});
  EXPECT_EQ(message_of<ShapeError>([&] { group_norm(x, 4, c, c); }),
            "group_norm: 10 channels do not divide into 4 groups (x [2,6,6,10])");
  EXPECT_THROW(group_norm_silu(x, 2, c, c, Tensor::zeros({2, 10})), ShapeError);
  EXPECT_THROW(group_norm(x, 2, c, Tensor::zeros({9})), ShapeError);
  EXPECT_THROW(attention(Tensor::zeros({2, 5, 10}), 2), ShapeError);
  EXPECT_THROW(avg_pool2d(x, 4), ShapeError);
  EXPECT_THROW(upsample_nearest(x, 0), ShapeError);
  EXPECT_THROW(resize_bilinear(x, 0, 3), ShapeError);
  EXPECT_THROW(softmax(Tensor::zeros({})), ShapeError);
}

TEST(Embedding, RefusesIndicesOutsideTheTable) {
  const Tensor table = Tensor::zeros({3, 4});
  EXPECT_EQ(message_of<Error>([&] {
              embedding(table, Tensor::from<int64_t>({2}, {0, 3}));
            }),
            "embedding: index 3 is outside a table of 3 rows");
  EXPECT_THROW(embedding(table, Tensor::from<int64_t>({1}, {-1})), Error);
  EXPECT_THROW(embedding(table, Tensor::from<int32_t>({1}, {0})), DTypeError);
  const Tensor betas = Tensor::zeros({3}, DType::kFloat64);
  EXPECT_THROW(gather_timesteps(betas, Tensor::from<int64_t>({1}, {3}), 4), Error);
}

TEST(Dropout, RefusesAProbabilityOfOneAndKeepsAllAtZero) {
  const Tensor x = Tensor::full({5}, 2);
  EXPECT_THROW(dropout(x, 1, {}), Error);
  EXPECT_THROW(dropout(x, -0.1, {}), Error);
  EXPECT_THAT(dropout(x, 0, {}).to_vector<double>(), Each(Eq(2.0)));
}

// The standard deviation of the kept share of n elements is
// sqrt(p (1 - p) / n) = 0.0015; four of them.
TEST(Dropout, KeepsTheShareThatItShouldAndTheMeanOfX) {
  const Tensor dropped = dropout(Tensor::full({100'000}, 1), 0.3, {11, 0, 0});
  double kept = 0;
  for (const float value : dropped.values<float>()) kept += value != 0 ? 1 : 0;
  EXPECT_NEAR(kept / 100'000, 0.7, 0.006);
  EXPECT_NEAR(mean(dropped).item(), 1, 0.006 / 0.7);
}

TEST(Max, SharesTheGradientEvenlyAmongTies) {
  const Tensor x = wanted(Tensor::from<double>({2, 3}, {1, 5, 5, 2, 2, 2}));
  max(x, {1}).backward(Tensor::from<double>({2}, {1, 6}));
  EXPECT_THAT(x.grad().to_vector<double>(), ElementsAre(0, 0.5, 0.5, 2, 2, 2));
}

TEST(Clamp, PassesTheGradientInsideAndOnTheBorders) {
  const Tensor x = wanted(Tensor::from<double>({5}, {-2, -1, 0, 1, 2}));
  clamp(x, -1, 1).backward(Tensor::full({5}, 3, DType::kFloat64));
  EXPECT_THAT(x.grad().to_vector<double>(), ElementsAre(0, 3, 3, 3, 0));
  EXPECT_THROW(clamp(x, 1, -1), Error);
}

TEST(Abs, HasDerivativeZeroAtZero) {
  const Tensor x = wanted(Tensor::from<double>({3}, {-2, 0, 2}));
  abs(x).backward(Tensor::full({3}, 1, DType::kFloat64));
  EXPECT_THAT(x.grad().to_vector<double>(), ElementsAre(-1, 0, 1));
}

TEST(Saturation, IsReachedWithoutOverflow) {
  const Tensor x = Tensor::from<float>({4}, {-1000, -100, 100, 1000});
  EXPECT_THAT(sigmoid(x).to_vector<double>(), ElementsAre(0, testing::Le(1e-40), 1, 1));
  EXPECT_THAT(tanh(x).to_vector<double>(), ElementsAre(-1, -1, 1, 1));
  const Tensor y = wanted(x.clone());
  silu(y).backward(Tensor::full({4}, 1));
  for (const float value : y.grad().values<float>()) EXPECT_TRUE(std::isfinite(value));
  EXPECT_THAT(softmax(x).to_vector<double>(), ElementsAre(0, 0, 0, 1));
}

TEST(Cast, CarriesGradientsBetweenFloatingDTypesAndNotThroughIntegers) {
  const Tensor x = wanted(Tensor::from<double>({3}, {1.25, -2.5, 3}));
  x.to(DType::kFloat32).backward(Tensor::from<float>({3}, {1, 2, 3}));
  EXPECT_EQ(x.grad().dtype(), DType::kFloat64);
  EXPECT_THAT(x.grad().to_vector<double>(), ElementsAre(1, 2, 3));
  EXPECT_FALSE(x.to(DType::kInt64).requires_grad());
  EXPECT_THAT(x.to(DType::kInt64).to_vector<int64_t>(), ElementsAre(1, -2, 3));
}

TEST(Views, ShareTheirStorageWithTheTensorThatTheyShow) {
  const Tensor x = Tensor::arange(12).reshape({4, 3});
  const Tensor rows = x.slice(1, 3);
  EXPECT_EQ(rows.data<int64_t>(), x.data<int64_t>() + 3);
  EXPECT_THAT(rows.to_vector<int64_t>(), ElementsAre(3, 4, 5, 6, 7, 8));
}

TEST(GradientsThatNobodyWants, AreNotComputed) {
  const Tensor x = uniform({2, 4, 4, 3}), weight = wanted(uniform({2, 3, 3, 3}));
  const Tensor out = conv2d(x, weight, {}, 1, 1);
  const std::vector<Tensor> gradients = out.node()->backward(uniform(out.shape()));
  EXPECT_FALSE(gradients[0].defined());
  EXPECT_TRUE(gradients[1].defined());
  EXPECT_FALSE(gradients[2].defined());
}

TEST(GatherTimesteps, GivesEachImageItsEntryInTheTypeOfTheBatch) {
  const Tensor table = Tensor::from<double>({3}, {0.1, 0.2, 0.3});
  const Tensor entries = gather_timesteps(table, Tensor::from<int64_t>({2}, {2, 0}), 4);
  EXPECT_EQ(entries.shape(), (Shape{2, 1, 1, 1}));
  EXPECT_THAT(entries.to_vector<float>(), ElementsAre(0.3F, 0.1F));
}

}  // namespace
}  // namespace mutilde
