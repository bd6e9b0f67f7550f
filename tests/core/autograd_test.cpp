#include "core/autograd.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/ops/ops.h"

namespace mutilde {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Tensor leaf(std::vector<double> values) {
  const auto n = static_cast<int64_t>(values.size());
  return Tensor::from<double>({n}, values).set_requires_grad(true);
}

template <class ErrorType, class F>
std::string message_of(const F& f) {
  try {
    f();
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "(nothing was thrown)";
}

TEST(Autograd, SumsTheGradientsOfATensorThatIsUsedManyTimes) {
  const Tensor x = leaf({2, -3});
  // d/dx (x * x + 5 x + x) = 2 x + 6.
  sum(x * x + 5.0 * x + x).backward();
  EXPECT_THAT(x.grad().to_vector<double>(), ElementsAre(10, 0));
}

TEST(Autograd, AccumulatesOverWalksUntilItIsCleared) {
  const Tensor x = leaf({1, 2});
  sum(3.0 * x).backward();
  sum(4.0 * x).backward();
  EXPECT_THAT(x.grad().to_vector<double>(), ElementsAre(7, 7));
  x.set_grad({});
  EXPECT_FALSE(x.grad().defined());
}

TEST(Autograd, DoesNotLetTwoLeavesShareOneGradientBuffer) {
  const Tensor a = leaf({1}), b = leaf({2});
  const Tensor cotangent = Tensor::from<double>({1}, {5});
  (a + b).backward(cotangent);  // both get the same cotangent
  (a + a).backward(cotangent);
  EXPECT_THAT(a.grad().to_vector<double>(), ElementsAre(15));
  EXPECT_THAT(b.grad().to_vector<double>(), ElementsAre(5));
  EXPECT_THAT(cotangent.to_vector<double>(), ElementsAre(5));
}

TEST(Autograd, ContractsWithTheCotangent) {
  const Tensor x = leaf({1, 2, 3});
  square(x).backward(Tensor::from<double>({3}, {1, 10, 100}));
  EXPECT_THAT(x.grad().to_vector<double>(), ElementsAre(2, 40, 600));
}

TEST(Autograd, WalksADiamondOnce) {
  // y = exp(x); z = y * y + y. A node that ran before all its consumers
  // would give a wrong gradient.
  const Tensor x = leaf({0.5});
  const Tensor y = exp(x);
  sum(y * y + y).backward();
  const double e = std::exp(0.5);
  EXPECT_NEAR(x.grad().item(), 2 * e * e + e, 1e-14);
}

TEST(Autograd, WalksAndDropsAMillionNodesWithoutRecursion) {
  const Tensor x = leaf({1});
  Tensor y = x;
  for (int i = 0; i < 1'000'000; ++i) y = y + 1.0;
  y.backward();
  EXPECT_EQ(x.grad().item(), 1);
  Tensor z = x;
  for (int i = 0; i < 1'000'000; ++i) z = z * 1.0;
  z = {};  // dropped without a walk
}

TEST(Autograd, RefusesARootThatIsNoScalarWithoutACotangent) {
  const Tensor x = leaf({1, 2});
  EXPECT_THAT(message_of<AutogradError>([&] { (x * 2.0).backward(); }),
              HasSubstr("[2] needs a cotangent"));
}

TEST(Autograd, RefusesASecondWalkOfAFreedGraph) {
  const Tensor x = leaf({1, 2});
  const Tensor y = exp(x);
  const Tensor loss = sum(y);
  loss.backward();
  EXPECT_THAT(message_of<AutogradError>([&] { loss.backward(); }),
              HasSubstr("freed by an earlier"));
  // A new root on a freed part is refused as well, before any gradient changes.
  EXPECT_THAT(message_of<AutogradError>([&] { sum(y * x).backward(); }), HasSubstr("'exp'"));
  EXPECT_NEAR(x.grad().to_vector<double>()[0], std::exp(1.0), 1e-15);
}

TEST(Autograd, RefusesAShapeThatDoesNotFit) {
  const Tensor x = leaf({1, 2});
  EXPECT_THAT(message_of<ShapeError>([&] { exp(x).backward(Tensor::zeros({3}, DType::kFloat64)); }),
              HasSubstr("cotangent float64 [3] given, root is float64 [2]"));
  const Tensor wrong = record("wrong", x.clone(), {x}, [](const Tensor&) -> std::vector<Tensor> {
    return {Tensor::zeros({5}, DType::kFloat64)};
  });
  EXPECT_THAT(message_of<ShapeError>([&] { sum(wrong).backward(); }), HasSubstr("'wrong'"));
}

TEST(Autograd, RefusesARootOutsideAnyGraph) {
  EXPECT_THROW(Tensor::zeros({}).backward(), AutogradError);
  const Tensor x = leaf({1});
  const NoGrad no_grad;
  EXPECT_THROW(sum(x).backward(), AutogradError);
}

TEST(Autograd, RecordsNothingUnderNoGradOrBehindDetach) {
  const Tensor x = leaf({1});
  EXPECT_FALSE(exp(x.detach()).requires_grad());
  {
    const NoGrad no_grad;
    EXPECT_FALSE(exp(x).requires_grad());
    const EnableGrad enable_grad;
    EXPECT_TRUE(exp(x).requires_grad());
  }
  EXPECT_TRUE(exp(x).requires_grad());
}

TEST(Autograd, MakesLeavesOfNothingElse) {
  Tensor x = leaf({1});
  x.set_requires_grad(true);  // it is one
  Tensor y = exp(x);
  EXPECT_THAT(message_of<AutogradError>([&] { y.set_requires_grad(true); }),
              HasSubstr("the result of 'exp'"));
  y.backward();
  EXPECT_THAT(message_of<AutogradError>([&] { y.set_requires_grad(true); }),
              HasSubstr("the result of 'exp'"));
  EXPECT_TRUE(y.detach().set_requires_grad(true).node()->is_leaf());
  EXPECT_FALSE(y.set_requires_grad(false).requires_grad());
}

TEST(Autograd, NamesTheOpWhoseShortCotangentsItCannotAddUp) {
  for (const DType type : {DType::kBFloat16, DType::kFloat16}) {
    const Tensor x = leaf({1, 2});
    const Tensor y = x.to(type);
    sum(y.to(DType::kFloat64)).backward();  // one is passed on
    EXPECT_THAT(x.grad().to_vector<double>(), ElementsAre(1, 1));
    const Tensor z = x.to(type);
    const Tensor twice = z.to(DType::kFloat64) + z.to(DType::kFloat64);
    EXPECT_THAT(message_of<DTypeError>([&] { sum(twice).backward(); }),
                HasSubstr(fmt::format("the {} cotangents of 'cast'", name_of(type))));
  }
}

// Adding to gradients that are there takes the memory of one more, not of all of them.
TEST(Autograd, FinishesEachLeafWhenItsLastUseIsDone) {
  Backend& cpu = backend(Device::cpu());
  constexpr int kLeaves = 12;
  constexpr int64_t kBytes = int64_t{1} << 18;
  std::vector<Tensor> weights;
  for (int i = 0; i < kLeaves; ++i)
    weights.push_back(Tensor::full({kBytes / 4}, i).set_requires_grad(true));
  const auto loss = [&] {
    Tensor y = 2.0 * weights[0];
    for (const Tensor& weight : weights) y = y + 3.0 * weight;  // saves nothing
    return sum(y);
  };
  loss().backward();
  const Tensor again = loss();
  const int64_t before = cpu.memory_stats().live_bytes;
  cpu.reset_peak_memory();
  again.backward();
  // The cotangent of the sum so far, that of a product, and that of weight 0, which waits for its
  // first use.
  EXPECT_LE(cpu.memory_stats().peak_bytes - before, 4 * kBytes);
  EXPECT_LE(cpu.memory_stats().live_bytes, before);
  EXPECT_EQ(weights[0].grad().to_vector<float>()[5], 2 * (2 + 3));
  EXPECT_EQ(weights[7].grad().to_vector<float>()[5], 2 * 3);
}

TEST(Autograd, FreesWhatANodeSavedAsSoonAsItRan) {
  Backend& cpu = backend(Device::cpu());
  const Tensor x = Tensor::full({1 << 16}, 0.5).set_requires_grad(true);
  const int64_t before = cpu.memory_stats().live_bytes;
  Tensor y = x;
  for (int i = 0; i < 8; ++i) y = sin(y);
  const Tensor loss = sum(y);
  y = {};
  const int64_t graph = cpu.memory_stats().live_bytes - before;
  EXPECT_GE(graph, 7 * (1 << 18));  // the inputs of seven of the sines
  cpu.reset_peak_memory();
  loss.backward();
  // The walk holds two cotangents at a time and gives a saved tensor back for each that it makes.
  EXPECT_LE(cpu.memory_stats().peak_bytes - before, graph + 3 * (1 << 18));
  EXPECT_LE(cpu.memory_stats().live_bytes - before, (1 << 18) + 1024);  // x's gradient
}

TEST(Checkpoint, GivesTheSameGradientsAndHoldsLess) {
  const Tensor w = leaf({0.3, -0.2});
  const auto f = [&](const std::vector<Tensor>& in) {
    Tensor h = in[0] * w;
    for (int i = 0; i < 6; ++i) h = sin(h + in[1]);
    return h;
  };
  const Tensor x = leaf({1, 2}), y = leaf({0.5, -1});
  const Tensor cotangent = Tensor::from<double>({2}, {3, -7});
  f({x, y}).backward(cotangent);
  const auto expected_x = x.grad().to_vector<double>(), expected_w = w.grad().to_vector<double>(),
             expected_y = y.grad().to_vector<double>();
  for (const Tensor& t : {x, y, w}) t.set_grad({});
  checkpoint(f, {x, y}).backward(cotangent);
  EXPECT_EQ(x.grad().to_vector<double>(), expected_x);
  EXPECT_EQ(y.grad().to_vector<double>(), expected_y);
  EXPECT_EQ(w.grad().to_vector<double>(), expected_w);
}

TEST(Checkpoint, ReachesCapturedParametersWhereNoInputWantsAGradient) {
  const Tensor w = leaf({2});
  const Tensor x = Tensor::from<double>({1}, {3});
  checkpoint([&](const std::vector<Tensor>& in) { return in[0] * w; }, {x}).backward();
  EXPECT_EQ(w.grad().item(), 3);
}

}  // namespace
}  // namespace mutilde
