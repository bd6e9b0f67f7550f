#include "diffusion/timestep_sampler.h"

#include <cmath>
#include <fstream>
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "support/diffusion.h"
#include "support/reference.h"

namespace mutilde {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

Tensor losses(const std::vector<double>& values) {
  return Tensor::from<double>({static_cast<int64_t>(values.size())}, values);
}

/// A sampler of T timesteps that is warm; t's losses are 1 + t.
LossSecondMomentSampler warm_sampler(int64_t T) {
  LossSecondMomentSampler sampler(T);
  std::vector<double> values(static_cast<size_t>(T));
  std::iota(values.begin(), values.end(), 1);
  for (int i = 0; i < 10; ++i) sampler.update_with_losses(Tensor::arange(T), losses(values));
  return sampler;
}

TEST(LossSecondMoment, WeightsMatchTheReferenceStageByStage) {
  std::ifstream file(test::data_path("resampler.json"));
  const auto reference = nlohmann::json::parse(file);
  const auto T = reference.at("num_timesteps").get<int64_t>();
  LossSecondMomentSampler sampler(T, reference.at("history_per_term").get<int64_t>(),
                                  reference.at("uniform_prob").get<double>());
  bool was_warm = false;
  for (const auto& stage : reference.at("stages")) {
    sampler.update_with_losses(test::timesteps(stage.at("timesteps").get<std::vector<int64_t>>()),
                               losses(stage.at("losses").get<std::vector<double>>()));
    const auto weights = stage.at("weights").get<std::vector<double>>();
    const auto importance = stage.at("importance").get<std::vector<double>>();
    const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
    const std::vector<double> p = sampler.probabilities();
    for (size_t t = 0; t < p.size(); ++t) {
      EXPECT_NEAR(p[t], weights[t] / total, 1e-10 * weights[t] / total);
      EXPECT_NEAR(1 / (static_cast<double>(T) * p[t]), importance[t], 1e-10 * importance[t]);
    }
    was_warm = was_warm || sampler.warm();
  }
  EXPECT_TRUE(was_warm);
}

TEST(LossSecondMoment, ProbabilitiesGrowWithTheRootMeanSquareAsEq18Says) {
  constexpr int64_t T = 4;
  LossSecondMomentSampler sampler(T, /*history=*/3, /*uniform_share=*/0.01);
  // Five losses for each t: the last three count.
  const double history[T][5] = {
      {9, 9, 1, 2, 3}, {9, 9, 0.5, 0.5, 0.5}, {9, 9, 4, 0, 0}, {9, 9, 2, 2, 2}};
  double root_mean_square[T], total = 0;
  for (int64_t t = 0; t < T; ++t) {
    for (double loss : history[t]) sampler.update_with_losses(test::timesteps({t}), losses({loss}));
    const double* last = history[t] + 2;
    root_mean_square[t] =
        std::sqrt((last[0] * last[0] + last[1] * last[1] + last[2] * last[2]) / 3);
    total += root_mean_square[t];
  }
  const std::vector<double> p = sampler.probabilities();
  for (int64_t t = 0; t < T; ++t) {
    EXPECT_NEAR(p[static_cast<size_t>(t)], 0.99 * root_mean_square[t] / total + 0.01 / T, 1e-14);
  }
}

TEST(LossSecondMoment, IsUniformUntilEveryTimestepHasTenLosses) {
  LossSecondMomentSampler sampler(3);
  for (int i = 0; i < 50; ++i) sampler.update_with_losses(test::timesteps({0, 1}), losses({5, 1}));
  for (int i = 0; i < 9; ++i) sampler.update_with_losses(test::timesteps({2}), losses({1}));
  EXPECT_FALSE(sampler.warm());
  for (double p : sampler.probabilities()) EXPECT_DOUBLE_EQ(p, 1.0 / 3);
  sampler.update_with_losses(test::timesteps({2}), losses({1}));
  EXPECT_TRUE(sampler.warm());
  EXPECT_GT(sampler.probabilities()[0], sampler.probabilities()[1]);
}

TEST(LossSecondMoment, IsUniformWhenNothingIsLost) {
  LossSecondMomentSampler sampler(2, /*history=*/1);
  sampler.update_with_losses(test::timesteps({0, 1}), losses({0, 0}));
  EXPECT_THAT(sampler.probabilities(), ::testing::ElementsAre(0.5, 0.5));
}

TEST(LossSecondMoment, GoesOnFromItsStateAsIfNothingHadHappened) {
  LossSecondMomentSampler one = warm_sampler(5), other(5);
  other.restore(one.state());
  for (LossSecondMomentSampler* sampler : {&one, &other}) {
    sampler->update_with_losses(test::timesteps({4, 0}), losses({0.1, 7}));
  }
  EXPECT_EQ(one.probabilities(), other.probabilities());
}

TEST(LossSecondMoment, RefusesTheStateOfAnother) {
  LossSecondMomentSampler sampler(5);
  EXPECT_THROW(sampler.restore(LossSecondMomentSampler(6).state()), Error);
  EXPECT_THROW(sampler.restore({}), Error);
  auto state = sampler.state();
  state["counts"] = test::timesteps({0, 0, 0, 0, 11});
  EXPECT_THROW(sampler.restore(state), Error);
  EXPECT_THROW(UniformSampler(5).restore(sampler.state()), Error);
}

TEST(LossSecondMoment, RefusesLossesThatAreNone) {
  LossSecondMomentSampler sampler(5);
  EXPECT_THAT([&] { sampler.update_with_losses(test::timesteps({1}), losses({NAN})); },
              ThrowsMessage<Error>(HasSubstr("nan at t = 1")));
  EXPECT_THROW(sampler.update_with_losses(test::timesteps({5}), losses({1})), Error);
  EXPECT_THROW(sampler.update_with_losses(test::timesteps({1, 2}), losses({1})), Error);
}

// The frequency of a probability p in n draws has standard deviation
// sqrt(p (1 - p) / n): 5 of them.
void expect_frequencies(const TimestepSampler& sampler) {
  constexpr int64_t kDraws = 200000;
  Generator generator(17);
  const TimestepSample sample = sampler.sample(kDraws, generator);
  const std::vector<double> p = sampler.probabilities();
  std::vector<double> counts(p.size());
  for (int64_t t : sample.t.to_vector<int64_t>()) counts[static_cast<size_t>(t)] += 1;
  for (size_t t = 0; t < p.size(); ++t) {
    EXPECT_NEAR(counts[t] / kDraws, p[t], 5 * std::sqrt(p[t] * (1 - p[t]) / kDraws)) << "t = " << t;
  }
}

TEST(TimestepSampler, DrawsEachTimestepAsOftenAsItsProbabilitySays) {
  expect_frequencies(UniformSampler(7));
  expect_frequencies(warm_sampler(7));
}

TEST(TimestepSampler, WeightsUndoTheProbabilities) {
  const LossSecondMomentSampler sampler = warm_sampler(7);
  const std::vector<double> p = sampler.probabilities();
  Generator generator(1);
  const TimestepSample sample = sampler.sample(50, generator);
  const auto t = sample.t.to_vector<int64_t>();
  const auto weights = sample.weights.to_vector<double>();
  for (size_t i = 0; i < t.size(); ++i) {
    EXPECT_NEAR(weights[i], 1 / (7 * p[static_cast<size_t>(t[i])]), 1e-6 * weights[i]);
  }
  const TimestepSample uniform = UniformSampler(7).sample(50, generator);  // values() does not own
  for (const float weight : uniform.weights.values<float>()) {
    EXPECT_FLOAT_EQ(weight, 1);
  }
}

TEST(TimestepSampler, DrawsTheSameFromTheSamePosition) {
  const UniformSampler sampler(1000);
  Generator one(3), other(3);
  EXPECT_EQ(sampler.sample(9, one).t.to_vector<int64_t>(),
            sampler.sample(9, other).t.to_vector<int64_t>());
  Generator third(4);
  EXPECT_NE(sampler.sample(9, one).t.to_vector<int64_t>(),
            sampler.sample(9, third).t.to_vector<int64_t>());
}

TEST(TimestepSampler, IsFoundByItsName) {
  EXPECT_NE(dynamic_cast<UniformSampler*>(make_timestep_sampler("uniform", 5).get()), nullptr);
  EXPECT_NE(
      dynamic_cast<LossSecondMomentSampler*>(make_timestep_sampler("loss-second-moment", 5).get()),
      nullptr);
  EXPECT_THAT([] { make_timestep_sampler("best", 5); }, ThrowsMessage<Error>(HasSubstr("best")));
  EXPECT_THROW(UniformSampler(0), Error);
}

}  // namespace
}  // namespace mutilde
