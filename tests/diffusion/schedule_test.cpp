#include "diffusion/schedule.h"

#include <cmath>
#include <map>
#include <numbers>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/diffusion.h"
#include "support/reference.h"

namespace mutilde {
namespace {

using test::close;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

double at(const Tensor& table, int64_t t) { return table.data<double>()[t]; }

// The reference's own float64 tables are off by up to 3.5e-12 of their maximum against exact
// arithmetic; ours may be off as much in the other direction.
TEST(Schedule, TablesMatchTheReference) {
  const test::Reference reference("schedules");
  int compared = 0;
  for (const std::string name : {"linear", "cosine"}) {
    for (int64_t T : {10, 100, 1000, 4000}) {
      if (name == "linear" && T == 10) continue;
      const std::vector<double> betas = named_beta_schedule(name, T);
      const Schedule s(betas);
      const std::map<std::string, Tensor> tables = {
          {"betas", s.beta},
          {"alphas_cumprod", s.alpha_bar},
          {"alphas_cumprod_prev", s.alpha_bar_prev},
          {"alphas_cumprod_next", s.alpha_bar_next},
          {"sqrt_alphas_cumprod", s.sqrt_alpha_bar},
          {"sqrt_one_minus_alphas_cumprod", s.sqrt_one_minus_alpha_bar},
          {"log_one_minus_alphas_cumprod", s.log_one_minus_alpha_bar},
          {"sqrt_recip_alphas_cumprod", s.sqrt_recip_alpha_bar},
          {"sqrt_recipm1_alphas_cumprod", s.sqrt_recip_alpha_bar_minus_one},
          {"posterior_variance", s.beta_tilde},
          {"posterior_log_variance_clipped", s.log_beta_tilde_clipped},
          {"posterior_mean_coef1", s.mu_tilde_x_0},
          {"posterior_mean_coef2", s.mu_tilde_x_t}};
      for (const auto& [table, ours] : tables) {
        const std::string key = name + "." + std::to_string(T) + "." + table;
        EXPECT_TRUE(close(ours, reference.read(key), 1e-11)) << key;
        ++compared;
      }
    }
  }
  EXPECT_EQ(compared, static_cast<int>(reference.names().size()));
}

TEST(Schedule, CosineAlphaBarFollowsEq17) {
  for (int64_t T : {10, 1000, 4000}) {
    const Schedule schedule(cosine_beta_schedule(T));
    const auto f = [T](int64_t t) {
      const double share = static_cast<double>(t) / static_cast<double>(T);
      return std::pow(std::cos((share + 0.008) / 1.008 * std::numbers::pi / 2), 2);
    };
    // All but the last step, where beta is cut off at 0.999. The paper's t is ours + 1.
    for (int64_t t = 0; t + 1 < T; ++t) {
      ASSERT_NEAR(at(schedule.alpha_bar, t), f(t + 1) / f(0), 1e-12)
          << "T = " << T << ", t = " << t;
    }
    EXPECT_EQ(at(schedule.beta, T - 1), 0.999);
  }
}

TEST(Schedule, LinearBetaIsAStraightLineScaledToTheNumberOfSteps) {
  for (int64_t T : {21, 100, 1000, 4000}) {
    const std::vector<double> betas = linear_beta_schedule(T);
    const double scale = 1000.0 / static_cast<double>(T);
    EXPECT_DOUBLE_EQ(betas.front(), 0.0001 * scale);
    EXPECT_DOUBLE_EQ(betas.back(), 0.02 * scale);
    for (size_t t = 1; t + 1 < betas.size(); ++t) {
      ASSERT_NEAR(betas[t + 1] - betas[t], betas[t] - betas[t - 1], 1e-15);
    }
  }
}

TEST(Schedule, PosteriorTablesFollowEq10AndEq11) {
  for (const std::string name : {"linear", "cosine"}) {
    const std::vector<double> betas = named_beta_schedule(name, 50);
    const Schedule schedule(betas);
    for (int64_t t = 0; t < 50; ++t) {
      const double beta = betas[static_cast<size_t>(t)];
      const double alpha_bar = test::alpha_bar_at(betas, t);
      const double alpha_bar_prev = test::alpha_bar_at(betas, t - 1);
      EXPECT_NEAR(at(schedule.beta_tilde, t), (1 - alpha_bar_prev) / (1 - alpha_bar) * beta, 1e-13);
      EXPECT_NEAR(at(schedule.one_minus_alpha_bar_prev, t), 1 - alpha_bar_prev, 1e-15);
      EXPECT_NEAR(at(schedule.one_minus_alpha_bar_next, t),
                  t + 1 < 50 ? 1 - test::alpha_bar_at(betas, t + 1) : 1, 1e-15);
      EXPECT_NEAR(at(schedule.mu_tilde_x_0, t), std::sqrt(alpha_bar_prev) * beta / (1 - alpha_bar),
                  1e-13);
      EXPECT_NEAR(at(schedule.mu_tilde_x_t, t),
                  std::sqrt(1 - beta) * (1 - alpha_bar_prev) / (1 - alpha_bar), 1e-13);
    }
    EXPECT_EQ(at(schedule.beta_tilde, 0), 0);
    EXPECT_EQ(at(schedule.log_beta_tilde_clipped, 0), std::log(at(schedule.beta_tilde, 1)));
  }
}

TEST(Schedule, WorksWithOneStep) {
  const Schedule schedule(cosine_beta_schedule(1));
  EXPECT_EQ(schedule.T, 1);
  EXPECT_EQ(at(schedule.alpha_bar_prev, 0), 1);
  EXPECT_EQ(at(schedule.alpha_bar_next, 0), 0);
  EXPECT_EQ(at(schedule.one_minus_alpha_bar_prev, 0), 0);
  EXPECT_EQ(at(schedule.one_minus_alpha_bar_next, 0), 1);
  EXPECT_EQ(at(schedule.beta_tilde, 0), 0);
  EXPECT_EQ(at(schedule.log_beta_tilde_clipped, 0), std::log(0.999));
  EXPECT_EQ(at(schedule.mu_tilde_x_t, 0), 0);
  EXPECT_NEAR(at(schedule.mu_tilde_x_0, 0), 1, 1e-15);
}

TEST(Schedule, RefusesABetaOutsideItsRange) {
  for (double bad : {0.0, -0.1, 1.5, static_cast<double>(NAN)}) {
    EXPECT_THAT([&] { Schedule({0.1, bad, 0.2}); }, ThrowsMessage<Error>(HasSubstr("at t = 1")));
  }
  EXPECT_THAT([] { Schedule(std::vector<double>{}); }, ThrowsMessage<Error>(HasSubstr("no betas")));
  EXPECT_NO_THROW(Schedule({0.1, 1.0}));
}

TEST(Schedule, RefusesALinearScheduleTooShortForItsBetas) {
  for (int64_t T : {-1, 0, 1, 10, 20}) {
    EXPECT_THAT([T] { linear_beta_schedule(T); }, ThrowsMessage<Error>(HasSubstr("at least 21")));
  }
  EXPECT_NO_THROW(Schedule(linear_beta_schedule(21)));
}

TEST(Schedule, RefusesACosineScheduleWithoutSteps) {
  EXPECT_THROW(cosine_beta_schedule(0), Error);
  EXPECT_THROW(cosine_beta_schedule(-5), Error);
}

TEST(Schedule, RefusesAnUnknownName) {
  EXPECT_THAT([] { named_beta_schedule("quadratic", 100); },
              ThrowsMessage<Error>(HasSubstr("quadratic")));
}

}  // namespace
}  // namespace mutilde
