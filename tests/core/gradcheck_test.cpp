#include "core/gradcheck.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/op_cases.h"
#include "core/ops/ops.h"

namespace mutilde {
namespace {

using ::testing::HasSubstr;

Tensor wanted(Tensor x) {
  x.set_requires_grad(true);
  return x;
}

// x^2 whose backward is right but for one element, which gets twice its share.
Tensor square_wrong_at(const Tensor& x, int64_t element) {
  return record("square", square(x.detach()), {x},
                [x = x.detach(), element](const Tensor& cotangent) -> std::vector<Tensor> {
                  const Tensor dx = 2.0 * x * cotangent;
                  dx.values<double>()[static_cast<size_t>(element)] *= 2;
                  return {dx};
                });
}

TEST(Gradcheck, PassesWhatIsRightToFarBelowItsTolerance) {
  const GradcheckReport report =
      gradcheck([](const Tensors& in) { return exp(in[0]) * sin(in[1]); },
                {wanted(uniform({3, 4}, -2, 2, 1)), wanted(uniform({4}, -2, 2, 2))});
  EXPECT_TRUE(report.passed) << report.message;
  // Derivatives of size e^2 = 7 over steps of 1e-3: h^4 7 / 30 = 2e-13 and 1.5 eps 7 / h = 2e-12
  // are the errors that the header derives.
  EXPECT_LT(report.worst_error, 1e-11);
  EXPECT_GT(report.largest_gradient, 0.1);
}

TEST(Gradcheck, NamesTheInputAndTheElementAndBothValues) {
  const Tensor x = wanted(uniform({2, 3}, -2, 2, 1));
  const Tensor y = wanted(Tensor::from<double>({2, 3}, {0.5, 0.5, 0.5, 0.5, 0.5, 1.5}));
  const GradcheckReport report = gradcheck(
      [](const Tensors& in) { return sum(in[0]) + 2.0 * sum(square_wrong_at(in[1], 5)); }, {x, y});
  EXPECT_FALSE(report.passed);
  EXPECT_THAT(report.message, HasSubstr("input 1 [2,3], element [1,2]"));
  EXPECT_NEAR(report.worst_error, 1, 1e-6);  // twice the right value

  // The values are those of 2 * 1.5^2 times the one random cotangent, g: 6 g and 12 g.
  double analytic = 0, numeric = 0;
  ASSERT_EQ(
      std::sscanf(report.message.c_str(),
                  "gradcheck: input 1 [2,3], element [1,2]: backward gives %lf, the difference "
                  "quotient %lf",
                  &analytic, &numeric),
      2)
      << report.message;
  EXPECT_NEAR(analytic / numeric, 2, 1e-6);
}

// An input whose small gradient is right to within atol has the larger relative error, but it is
// not what is wrong.
TEST(Gradcheck, NamesTheInputThatFailsAndNotOneThatAtolAllows) {
  const auto slightly_wrong = [](const Tensor& x) {
    return record("square", square(x.detach()), {x},
                  [x = x.detach()](const Tensor& cotangent) -> std::vector<Tensor> {
                    return {2.000002 * x * cotangent};  // ten times more than rtol
                  });
  };
  const GradcheckReport report =
      gradcheck([&](const Tensors& in) { return sum(slightly_wrong(in[0])) + 5e-9 * sum(in[1]); },
                {wanted(uniform({3}, 1, 2)), wanted(uniform({2}, 1, 2))});
  EXPECT_FALSE(report.passed);
  EXPECT_THAT(report.message, HasSubstr("input 0 [3]"));
  EXPECT_NEAR(report.worst_error, 1e-6, 1e-8);
}

TEST(Gradcheck, RejectsAnInfiniteGradient) {
  // Two steps below 0.002 the logarithm is that of 0.
  const GradcheckReport report = gradcheck([](const Tensors& in) { return log(in[0]); },
                                           {wanted(Tensor::from<double>({1}, {0.002}))});
  EXPECT_FALSE(report.passed);
  EXPECT_THAT(report.message, HasSubstr("input 0"));
}

TEST(Gradcheck, FindsOneWrongElementOfALargeInput) {
  const GradcheckReport report =
      gradcheck([](const Tensors& in) { return square_wrong_at(in[0], 777); },
                {wanted(uniform({1000}, 1, 2))});
  EXPECT_FALSE(report.passed);
  EXPECT_THAT(report.message, HasSubstr("random direction"));
}

TEST(Gradcheck, RejectsAFunctionWhoseGradientIsZeroEverywhere) {
  // The sum of a softmax is 1 whatever x is, so that a backward which returns nothing would pass.
  const GradcheckReport report =
      gradcheck([](const Tensors& in) { return sum(softmax(in[0])); }, {wanted(uniform({2, 3}))});
  EXPECT_FALSE(report.passed);
  EXPECT_THAT(report.message, HasSubstr("input 0 [2,3]: the numeric gradient is zero everywhere"));
}

TEST(Gradcheck, RejectsAnInputThatTheFunctionIgnores) {
  const GradcheckReport report = gradcheck([](const Tensors& in) { return square(in[0]); },
                                           {wanted(uniform({3})), wanted(uniform({2}))});
  EXPECT_FALSE(report.passed);
  EXPECT_THAT(report.message, HasSubstr("input 1"));
}

TEST(Gradcheck, RejectsAFunctionThatCutsTheGraph) {
  const GradcheckReport report = gradcheck([](const Tensors& in) { return square(in[0].detach()); },
                                           {wanted(uniform({3}, 1, 2))});
  EXPECT_FALSE(report.passed);
  EXPECT_THAT(report.message, HasSubstr("backward gives 0,"));
}

TEST(Gradcheck, RejectsNotANumber) {
  const GradcheckReport report =
      gradcheck([](const Tensors& in) { return log(in[0]); }, {wanted(uniform({3}, -2, -1))});
  EXPECT_FALSE(report.passed);
}

TEST(Gradcheck, ContractsWithARandomCotangentSoThatAMissingSoftmaxBackwardIsSeen) {
  const auto without_backward = [](const Tensors& in) {
    return record(
        "softmax", softmax(in[0].detach()), {in[0]},
        [](const Tensor& cotangent) -> std::vector<Tensor> { return {zeros_like(cotangent)}; });
  };
  EXPECT_FALSE(gradcheck(without_backward, {wanted(uniform({2, 3}))}).passed);
}

TEST(Gradcheck, RefusesFloat32AndAFunctionOfNothing) {
  const auto function = [](const Tensors& in) { return square(in[0]); };
  EXPECT_THROW(gradcheck(function, {wanted(Tensor::zeros({2}))}), DTypeError);
  EXPECT_THROW(gradcheck(function, {uniform({2})}), Error);
  EXPECT_THROW(gradcheck([](const Tensors& in) { return in[0].to(DType::kFloat32); },
                         {wanted(uniform({2}))}),
               DTypeError);
}

TEST(Gradcheck, LeavesInputsAndTheirGradientsAlone) {
  const Tensor x = wanted(uniform({3}));
  const std::vector<double> before = x.to_vector<double>();
  EXPECT_TRUE(gradcheck([](const Tensors& in) { return square(in[0]); }, {x}).passed);
  EXPECT_EQ(x.to_vector<double>(), before);
  EXPECT_FALSE(x.grad().defined());
}

}  // namespace
}  // namespace mutilde
