// Eq. 2 and 8-13, each against the formula of the paper, written out in float64 element by element.
#include "diffusion/posterior.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/ops/ops.h"
#include "support/diffusion.h"
#include "support/reference.h"

namespace mutilde {
namespace {

using test::close;

// Round-off in float64. Near t = 0 a table such as 1 - alpha_bar_t is itself only good to
// 1e-16 / 1e-4 of its value.
constexpr double kRoundOff = 1e-11;

/// The paper's quantities at one timestep, straight from the betas.
struct At {
  At(const std::vector<double>& betas, int64_t t)
      : beta(betas[static_cast<size_t>(t)]),
        alpha(1 - beta),
        alpha_bar(test::alpha_bar_at(betas, t)),
        alpha_bar_prev(test::alpha_bar_at(betas, t - 1)) {}
  double beta, alpha, alpha_bar, alpha_bar_prev;
};

/// Each test walks over all timesteps of this, in one batch.
class Posterior : public ::testing::TestWithParam<std::string> {
 protected:
  static constexpr int64_t T = 200;

  /// The formula of one element, of two tensors a and b.
  Tensor compute(const Tensor& a, const Tensor& b,
                 const std::function<double(const At&, double a, double b)>& formula) const {
    const Tensor out = zeros_like(a);
    const int64_t per_image = a.numel() / T;
    for (int64_t i = 0; i < a.numel(); ++i) {
      const At at(betas, i / per_image);
      out.data<double>()[i] = formula(at, a.data<double>()[i], b.data<double>()[i]);
    }
    return out;
  }

  Generator generator{7};
  std::vector<double> betas = named_beta_schedule(GetParam(), T);
  Schedule schedule{betas};
  Tensor t = Tensor::arange(T);
  Tensor x_0 = test::normal_images(T, generator);
  Tensor x_t = test::normal_images(T, generator);
  Tensor eps = test::normal_images(T, generator);
};

INSTANTIATE_TEST_SUITE_P(Schedules, Posterior, ::testing::Values("linear", "cosine"),
                         [](const auto& schedule) { return schedule.param; });

TEST_P(Posterior, OneStepFollowsEq2) {
  const Tensor expected = compute(x_0, eps, [](const At& at, double x_prev, double noise) {
    return std::sqrt(1 - at.beta) * x_prev + std::sqrt(at.beta) * noise;
  });
  EXPECT_TRUE(close(q_step(schedule, x_0, t, eps), expected, kRoundOff));
}

// The mean and the variance of x_t, carried through eq. 2 step by step, are those of eq. 8.
TEST_P(Posterior, AllStepsOfEq2TogetherAreEq8) {
  const Tensor x = test::normal_images(1, generator);
  Tensor mean = x;
  double variance = 0;
  for (int64_t step = 0; step < T; ++step) {
    const Tensor at = full_timesteps(step, x);
    mean = q_step(schedule, mean, at, zeros_like(x));
    const double unit = q_step(schedule, Tensor::zeros({1, 1}, DType::kFloat64), at,
                               Tensor::full({1, 1}, 1, DType::kFloat64))
                            .item();
    variance = (1 - betas[static_cast<size_t>(step)]) * variance + unit * unit;
    const Gaussian q = q_mean_variance(schedule, x, at);
    ASSERT_TRUE(close(q.mean, mean, kRoundOff)) << step;
    ASSERT_NEAR(q.variance.item(), variance, kRoundOff) << step;
    ASSERT_NEAR(q.log_variance.item(), std::log(variance), kRoundOff) << step;
  }
}

TEST_P(Posterior, MeanAndVarianceFollowEq8) {
  const Gaussian q = q_mean_variance(schedule, x_0, t);
  const auto mean = [](const At& at, double x, double) { return std::sqrt(at.alpha_bar) * x; };
  const auto variance = [](const At& at, double, double) { return 1 - at.alpha_bar; };
  EXPECT_TRUE(close(q.mean, compute(x_0, x_0, mean), kRoundOff));
  EXPECT_TRUE(close(broadcast_to(q.variance, x_0.shape()), compute(x_0, x_0, variance), kRoundOff));
  EXPECT_TRUE(close(exp(q.log_variance), q.variance, kRoundOff));
}

TEST_P(Posterior, SampleFollowsEq9) {
  const Tensor expected = compute(x_0, eps, [](const At& at, double x, double noise) {
    return std::sqrt(at.alpha_bar) * x + std::sqrt(1 - at.alpha_bar) * noise;
  });
  EXPECT_TRUE(close(q_sample(schedule, x_0, t, eps), expected, kRoundOff));
}

TEST_P(Posterior, Eq9SolvedGivesBackTheImageAndTheNoise) {
  const Tensor noisy = q_sample(schedule, x_0, t, eps);
  // Round-off in x_t is multiplied by up to sqrt(1 / alpha_bar).
  const double amplified = 1e-14 / std::sqrt(test::alpha_bar_at(betas, T - 1));
  EXPECT_TRUE(close(predict_x0_from_eps(schedule, noisy, t, eps), x_0, kRoundOff, amplified));
  EXPECT_TRUE(close(predict_eps_from_x0(schedule, noisy, t, x_0), eps, kRoundOff));
}

TEST_P(Posterior, Eq11SolvedGivesBackTheImage) {
  const Tensor x_prev = q_posterior_mean(schedule, x_0, x_t, t);
  // Round-off in x_prev is divided by x_0's coefficient, which is small where beta is.
  EXPECT_TRUE(close(predict_x0_from_x_prev(schedule, x_t, t, x_prev), x_0, 1e-9));
}

TEST_P(Posterior, VarianceFollowsEq10) {
  const Tensor expected = compute(x_0, x_0, [](const At& at, double, double) {
    return (1 - at.alpha_bar_prev) / (1 - at.alpha_bar) * at.beta;
  });
  const Tensor variance = posterior_variance(schedule, t, x_0);
  EXPECT_TRUE(close(broadcast_to(variance, x_0.shape()), expected, kRoundOff));
}

TEST_P(Posterior, MeanFollowsEq11) {
  const Tensor expected = compute(x_0, x_t, [](const At& at, double image, double noisy) {
    return std::sqrt(at.alpha_bar_prev) * at.beta / (1 - at.alpha_bar) * image +
           std::sqrt(at.alpha) * (1 - at.alpha_bar_prev) / (1 - at.alpha_bar) * noisy;
  });
  EXPECT_TRUE(close(q_posterior_mean(schedule, x_0, x_t, t), expected, kRoundOff));
}

// Eq. 12 is what Bayes' rule makes of eq. 2 and eq. 8: precisions add, and so do the means that
// they weight. The densities' product is a normal one in x_{t-1}.
TEST_P(Posterior, IsBayesRuleAsEq12Says) {
  const Gaussian q = q_posterior(schedule, x_0, x_t, t);
  const auto mean = [](const At& at, double image, double noisy) {
    const double prior_precision = 1 / (1 - at.alpha_bar_prev);
    const double step_precision = at.alpha / at.beta;  // of x_t = sqrt(alpha) x_{t-1} + ..
    return (prior_precision * std::sqrt(at.alpha_bar_prev) * image +
            step_precision * noisy / std::sqrt(at.alpha)) /
           (prior_precision + step_precision);
  };
  const auto variance = [](const At& at, double, double) {
    return 1 / (1 / (1 - at.alpha_bar_prev) + at.alpha / at.beta);
  };
  const Tensor all_variances = broadcast_to(q.variance, x_0.shape());
  // From the second step on: at the first x_{t-1} is x_0 itself, with no variance.
  EXPECT_TRUE(close(q.mean.slice(1, T), compute(x_0, x_t, mean).slice(1, T), kRoundOff));
  EXPECT_TRUE(close(all_variances.slice(1, T), compute(x_0, x_t, variance).slice(1, T), kRoundOff));
  EXPECT_TRUE(close(q.mean.slice(0, 1), x_0.slice(0, 1), kRoundOff));
  EXPECT_EQ(q.variance.data<double>()[0], 0);
  EXPECT_TRUE(close(exp(q.log_variance).slice(1, T), q.variance.slice(1, T), kRoundOff));
  EXPECT_EQ(q.log_variance.data<double>()[0], q.log_variance.data<double>()[1]);
}

TEST_P(Posterior, DirectMeanFollowsEq13) {
  const Tensor expected = compute(x_t, eps, [](const At& at, double noisy, double noise) {
    return (noisy - at.beta / std::sqrt(1 - at.alpha_bar) * noise) / std::sqrt(at.alpha);
  });
  EXPECT_TRUE(close(mean_from_eps(schedule, x_t, t, eps), expected, kRoundOff));
}

// The question that this project exists to answer, as a test. x_t and eps are any:
// nothing here is near an image.
TEST_P(Posterior, MeanEqualsEq13WithoutClipping) {
  const Tensor direct = mean_from_eps(schedule, x_t, t, eps);
  const Tensor through_x0 = mean_through_x0(schedule, x_t, t, eps, /*clip=*/false);
  for (int64_t step = 0; step < T; ++step) {
    const Tensor of_step = direct.slice(step, step + 1);
    ASSERT_TRUE(close(through_x0.slice(step, step + 1), of_step, kRoundOff)) << "t = " << step;
  }
}

TEST_P(Posterior, ClippingPartsTheRoutesExactlyWhereTheImageLeavesItsRange) {
  // Half of the elements get the noise that was really added, the others any.
  const Tensor image = clamp(x_0 * 0.4, -1, 1);
  const Tensor noisy = q_sample(schedule, image, t, eps);
  const Tensor half = less(test::normal_images(T, generator), Tensor::zeros({}, DType::kFloat64));
  const Tensor guess = where(half, eps, x_t);
  const Tensor x_0_hat = predict_x0_from_eps(schedule, noisy, t, guess);
  const Tensor direct = mean_from_eps(schedule, noisy, t, guess);
  const Tensor clipped = mean_through_x0(schedule, noisy, t, guess, /*clip=*/true);
  int inside = 0, outside = 0;
  for (int64_t i = 0; i < x_0_hat.numel(); ++i) {
    const At at(betas, i / (x_0_hat.numel() / T));
    const double value = x_0_hat.data<double>()[i];
    const double beyond = value - std::clamp(value, -1.0, 1.0);
    // They part by what was cut off, times x_0's coefficient in eq. 11.
    const double expected = std::sqrt(at.alpha_bar_prev) * at.beta / (1 - at.alpha_bar) * beyond;
    const double parted = direct.data<double>()[i] - clipped.data<double>()[i];
    ASSERT_NEAR(parted, expected, kRoundOff * std::max(1.0, std::fabs(value))) << "element " << i;
    (std::fabs(value) <= 1 ? inside : outside) += 1;
  }
  EXPECT_GT(inside, x_0_hat.numel() / 10);
  EXPECT_GT(outside, x_0_hat.numel() / 10);
}

// Why the posterior's mean, though no sampler knows x_0: in a world of three images of one pixel, the mean
// of x_{t-1} given x_t is added up from eq. 2 and eq. 8, over all that x_{t-1} may be. It is eq. 11 at
// the average of the images that x_t leaves possible, and eq. 13 at the average noise.
TEST_P(Posterior, TheRightMeanIsEq11AtTheAverageImage) {
  const auto one_pixel = [](double value) { return Tensor::full({1, 1}, value, DType::kFloat64); };
  const auto bell = [](double x, double mean, double variance) {
    return std::exp(-0.5 * (x - mean) * (x - mean) / variance);
  };
  for (int64_t step = 1; step < T; ++step) {
    const At at(betas, step);
    const double noisy = 0.3 * std::sqrt(at.alpha_bar) + 0.7 * std::sqrt(1 - at.alpha_bar);
    double images = 0, image_weight = 0, prevs = 0, prev_weight = 0;
    for (const double image : {-1.0, 0.2, 0.8}) {
      const double w = bell(noisy, std::sqrt(at.alpha_bar) * image, 1 - at.alpha_bar);
      images += w * image;
      image_weight += w;
      // The sum over a grid is the integral to round-off: the bells are at least five points wide, and
      // nine deviations of 1 from its ends.
      for (int i = -5000; i <= 5000; ++i) {
        const double x_prev = 2e-3 * i;
        const double v = bell(x_prev, std::sqrt(at.alpha_bar_prev) * image, 1 - at.alpha_bar_prev) *
                         bell(noisy, std::sqrt(at.alpha) * x_prev, at.beta);
        prevs += v * x_prev;
        prev_weight += v;
      }
    }
    const double image = images / image_weight;
    const double noise = (noisy - std::sqrt(at.alpha_bar) * image) / std::sqrt(1 - at.alpha_bar);
    const Tensor x = one_pixel(noisy), steps = test::timesteps({step});
    const double mean = prevs / prev_weight;
    ASSERT_NEAR(q_posterior_mean(schedule, one_pixel(image), x, steps).item(), mean, kRoundOff)
        << "t = " << step;
    ASSERT_NEAR(mean_from_eps(schedule, x, steps, one_pixel(noise)).item(), mean, kRoundOff)
        << "t = " << step;
  }
}

// An image is within [-1, 1], so the border is nearer to each of its pixels than what is beyond.
TEST_P(Posterior, ClippingBringsNoPixelOfTheMeanFartherFromTheRightOne) {
  const Tensor image = clamp(x_0, -1, 1), noisy = q_sample(schedule, image, t, eps);
  const Tensor guess = eps + 0.5 * x_t;
  const Tensor right = q_posterior_mean(schedule, image, noisy, t);
  const Tensor direct = abs(mean_from_eps(schedule, noisy, t, guess) - right);
  const Tensor clipped = abs(mean_through_x0(schedule, noisy, t, guess, /*clip=*/true) - right);
  int64_t nearer = 0;
  for (int64_t i = 0; i < direct.numel(); ++i) {
    const double before = direct.data<double>()[i], after = clipped.data<double>()[i];
    ASSERT_LE(after, before + kRoundOff * std::max(1.0, before)) << "element " << i;
    nearer += after < 0.99 * before ? 1 : 0;
  }
  EXPECT_GT(nearer, direct.numel() / 10);
}

TEST_P(Posterior, RoutesAgreeOverAThousandSteps) {
  const Schedule long_schedule(named_beta_schedule(GetParam(), 1000));
  const Tensor all_t = Tensor::arange(1000);
  const Tensor x = test::normal_images(1000, generator),
               noise = test::normal_images(1000, generator);
  const Tensor direct = mean_from_eps(long_schedule, x, all_t, noise);
  const Tensor through_x0 = mean_through_x0(long_schedule, x, all_t, noise, /*clip=*/false);
  EXPECT_TRUE(close(through_x0, direct, 1e-12));
}

// At the end of a cosine schedule an untrained model's x_0 is thrown out by the ten thousands.
TEST(PosteriorClipping, MovesTheMeanByMoreThanAHundredAtTheEndOfACosineSchedule) {
  Generator generator(3);
  const Schedule schedule(cosine_beta_schedule(1000));
  const Tensor x_t = generator.normal({1, 8, 8, 3}, DType::kFloat64), t = test::timesteps({999});
  const Tensor eps_theta = generator.normal({1, 8, 8, 3}, DType::kFloat64);
  const Tensor x_0_hat = predict_x0_from_eps(schedule, x_t, t, eps_theta);
  const Tensor direct = mean_from_eps(schedule, x_t, t, eps_theta);
  const Tensor clipped = mean_through_x0(schedule, x_t, t, eps_theta, /*clip=*/true);
  EXPECT_GT(max(abs(x_0_hat)).item(), 10000);
  EXPECT_GT(max(abs(direct - clipped)).item(), 100);
}

TEST(PosteriorErrors, NameTheFunctionAndTheShapes) {
  const Schedule schedule(cosine_beta_schedule(10));
  const Tensor x = Tensor::zeros({2, 4, 4, 3}), smaller = Tensor::zeros({2, 4, 4, 1});
  const Tensor t = test::timesteps({0, 9});
  const auto fails_with = [](const auto& call, const std::string& text) {
    EXPECT_THAT(call, ::testing::ThrowsMessage<Error>(::testing::HasSubstr(text)));
  };
  fails_with([&] { q_sample(schedule, x, t, smaller); }, "q_sample");
  fails_with([&] { q_posterior_mean(schedule, smaller, x, t); }, "[2,4,4,1]");
  fails_with([&] { mean_from_eps(schedule, x, t, smaller); }, "mean_from_eps");
  fails_with([&] { q_sample(schedule, x, test::timesteps({0}), x); }, "1 timesteps");
  fails_with([&] { q_sample(schedule, x, test::timesteps({0, 10}), x); }, "10");
}

}  // namespace
}  // namespace mutilde
