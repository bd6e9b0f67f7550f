// Eq. 4-7, 14 and 16 against formulas and integrals computed here, and their gradients.
#include "diffusion/losses.h"

#include <cmath>
#include <numbers>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/gradcheck.h"
#include "core/ops/ops.h"
#include "support/diffusion.h"
#include "support/reference.h"

namespace mutilde {
namespace {

using test::close;

constexpr double kRoundOff = 1e-11;

Tensor scalar(double value) { return Tensor::full({1}, value, DType::kFloat64); }

double normal_density(double x, double mean, double log_variance) {
  return std::exp(-0.5 * (x - mean) * (x - mean) / std::exp(log_variance)) /
         std::sqrt(2 * std::numbers::pi * std::exp(log_variance));
}

/// Trapezoidal rule, which converges faster than any power for a function
/// that dies out at both ends.
template <class Function>
double integral(double from, double to, const Function& f) {
  constexpr int kSteps = 20000;
  const double step = (to - from) / kSteps;
  double total = 0;
  for (int i = 0; i <= kSteps; ++i) total += (i == 0 || i == kSteps ? 0.5 : 1) * f(from + i * step);
  return total * step;
}

double kl_by_integration(double mean_1, double log_variance_1, double mean_2,
                         double log_variance_2) {
  const double reach = 12 * std::exp(0.5 * log_variance_1);
  return integral(mean_1 - reach, mean_1 + reach, [&](double x) {
    const double log_ratio = 0.5 * (log_variance_2 - log_variance_1) -
                             0.5 * (x - mean_1) * (x - mean_1) / std::exp(log_variance_1) +
                             0.5 * (x - mean_2) * (x - mean_2) / std::exp(log_variance_2);
    return normal_density(x, mean_1, log_variance_1) * log_ratio;
  });
}

TEST(Losses, NormalKlIsItsIntegral) {
  const double cases[][4] = {
      {0, 0, 0, 0}, {0.3, -1, -0.2, 0.5}, {2, 1, -1, -0.7}, {0, -6, 0.1, -5}};
  for (const auto& [mean_1, log_variance_1, mean_2, log_variance_2] : cases) {
    const double kl =
        normal_kl(scalar(mean_1), scalar(log_variance_1), scalar(mean_2), scalar(log_variance_2))
            .item();
    EXPECT_NEAR(kl, kl_by_integration(mean_1, log_variance_1, mean_2, log_variance_2), 1e-9);
  }
}

TEST(Losses, TanhIsCloseToTheNormalDistributionFunction) {
  for (double x = -6; x <= 6; x += 0.01) {
    const double exact = 0.5 * std::erfc(-x / std::numbers::sqrt2);
    ASSERT_NEAR(approx_standard_normal_cdf(scalar(x)).item(), exact, 4e-4) << x;
  }
}

TEST(Losses, ProbabilitiesOfAllPixelValuesSumToOne) {
  std::vector<double> pixels;
  for (int value = 0; value < 256; ++value) pixels.push_back(value / 127.5 - 1);
  const Tensor x = Tensor::from<double>({256}, pixels);
  for (double mean : {-1.2, -0.3, 0.0, 0.999}) {
    for (double log_scale : {-3.0, -1.0, 0.5}) {
      const Tensor log_likelihood =
          discretized_gaussian_log_likelihood(x, scalar(mean), scalar(log_scale));
      EXPECT_NEAR(sum(exp(log_likelihood)).item(), 1, 1e-9) << mean << " " << log_scale;
    }
  }
}

/// Two images each at t = 0, in the middle and at the end, float64, and a
/// process that learns its variance.
class Terms : public ::testing::Test {
 protected:
  static constexpr int64_t T = 30;

  Prediction predict(const GaussianDiffusion& process, const Tensor& from) const {
    return process.p_mean_variance(test::constant_model(from), x_t, t, {.clip = false});
  }

  Generator generator{11};
  std::vector<double> betas = cosine_beta_schedule(T);
  GaussianDiffusion diffusion{betas, {.variance = ModelVariance::kLearnedRange}};
  Tensor t = test::timesteps({0, 0, 14, 14, T - 1, T - 1});
  // On the 8-bit grid, as the likelihood of pixels expects.
  Tensor x_0 = [this] {
    const Tensor level = generator.integers({6, 2, 3, 2}, 256).to(DType::kFloat64);
    return level / 127.5 - 1.0;
  }();
  Tensor eps = test::normal_images(6, generator);
  Tensor x_t = q_sample(diffusion.schedule(), x_0, t, eps);
  // Not far from the truth, so that the likelihood stays off its floor.
  Tensor output = concat(
      {eps + 0.1 * test::normal_images(6, generator), 0.5 * test::normal_images(6, generator)});
};

TEST_F(Terms, FirstIsTheLikelihoodOfThePixelsAsEq5Says) {
  const Prediction p = predict(diffusion, output);
  const Tensor terms = vlb_terms(diffusion, x_0, x_t, t, p);
  for (int64_t n : {0, 1}) {
    double nats = 0;
    for (int64_t i = n * 12; i < (n + 1) * 12; ++i) {
      const double x = x_0.data<double>()[i], mean = p.mu_theta.data<double>()[i];
      const double scale = std::exp(0.5 * p.log_variance.data<double>()[i]);
      const auto cdf = [&](double edge) {
        const double z = (edge - mean) / scale;
        return 0.5 * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (z + 0.044715 * z * z * z)));
      };
      const double above = x > 0.999 ? 1 : cdf(x + 1 / 255.0);
      const double below = x < -0.999 ? 0 : cdf(x - 1 / 255.0);
      nats -= std::log(above - below);
    }
    EXPECT_NEAR(terms.data<double>()[n], nats / 12 / std::numbers::ln2, 1e-9);
  }
}

TEST_F(Terms, OthersAreDivergencesFromThePosteriorAsEq6Says) {
  const Prediction p = predict(diffusion, output);
  const Tensor terms = vlb_terms(diffusion, x_0, x_t, t, p);
  for (int64_t n : {2, 3, 4, 5}) {
    const int64_t step = t.data<int64_t>()[n];
    const double beta = betas[static_cast<size_t>(step)],
                 alpha_bar = test::alpha_bar_at(betas, step);
    const double alpha_bar_prev = test::alpha_bar_at(betas, step - 1);
    const double variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * beta;
    double nats = 0;
    for (int64_t i = n * 12; i < (n + 1) * 12; ++i) {
      const double mean =
          std::sqrt(alpha_bar_prev) * beta / (1 - alpha_bar) * x_0.data<double>()[i] +
          std::sqrt(1 - beta) * (1 - alpha_bar_prev) / (1 - alpha_bar) * x_t.data<double>()[i];
      nats += kl_by_integration(mean, std::log(variance), p.mu_theta.data<double>()[i],
                                p.log_variance.data<double>()[i]);
    }
    EXPECT_NEAR(terms.data<double>()[n], nats / 12 / std::numbers::ln2, 1e-7) << "t = " << step;
  }
}

TEST_F(Terms, PriorIsTheDivergenceFromPureNoiseAsEq7Says) {
  // The cosine schedule hardly leaves anything to measure: half of its steps do.
  const std::vector<double> half(betas.begin(), betas.begin() + T / 2);
  const Tensor prior = prior_bpd(GaussianDiffusion(half), x_0);
  const double alpha_bar = test::alpha_bar_at(betas, T / 2 - 1);
  for (int64_t n = 0; n < 6; ++n) {
    double nats = 0;
    for (int64_t i = n * 12; i < (n + 1) * 12; ++i) {
      nats += kl_by_integration(std::sqrt(alpha_bar) * x_0.data<double>()[i],
                                std::log(1 - alpha_bar), 0, 0);
    }
    EXPECT_NEAR(prior.data<double>()[n], nats / 12 / std::numbers::ln2, 1e-9);
  }
}

TEST_F(Terms, AddUpToTheBoundAsEq4Says) {
  const Model model = [&](const Tensor& x, const Tensor&) { return concat({0.3 * x, tanh(x)}); };
  const Noise noise = [&](const Tensor&) { return eps; };
  const BitsPerDim bits = bits_per_dim(diffusion, model, x_0, noise, /*clip=*/false);
  ASSERT_EQ(bits.vlb.shape(), (Shape{6, T}));
  Tensor total = prior_bpd(diffusion, x_0);
  for (int64_t step = 0; step < T; ++step) {
    const Tensor at = full_timesteps(step, x_0);
    const Tensor noisy = q_sample(diffusion.schedule(), x_0, at, eps);
    const Prediction p = diffusion.p_mean_variance(model, noisy, at, {.clip = false});
    const Tensor term = vlb_terms(diffusion, x_0, noisy, at, p);
    const int64_t column = T - 1 - step;
    EXPECT_TRUE(close(slice_channels(bits.vlb, column, column + 1).reshape({6}), term, kRoundOff));
    total = total + term;
  }
  EXPECT_TRUE(close(bits.total, total, kRoundOff));
}

TEST_F(Terms, SimpleLossIsTheErrorOfTheNoiseAsEq14Says) {
  const GaussianDiffusion fixed(betas);
  const Tensor guess = slice_channels(output, 0, 2);
  const TrainingLosses losses = training_losses(fixed, test::constant_model(guess), x_0, t, eps);
  for (int64_t n = 0; n < 6; ++n) {
    double total = 0;
    for (int64_t i = n * 12; i < (n + 1) * 12; ++i) {
      total += std::pow(eps.data<double>()[i] - guess.data<double>()[i], 2);
    }
    EXPECT_NEAR(losses.loss.data<double>()[n], total / 12, kRoundOff);
  }
  EXPECT_FALSE(losses.vb.defined());
}

// L_simple + lambda T L_t, lambda = 0.001, and the bound's gradient does not reach the mean.
TEST_F(Terms, HybridLossTeachesTheVarianceAloneAsEq16Says) {
  const GaussianDiffusion hybrid(
      betas, {.variance = ModelVariance::kLearnedRange, .loss = Loss::kRescaledMse});
  Tensor leaf = output.clone();
  leaf.set_requires_grad(true);
  const TrainingLosses losses = training_losses(hybrid, test::constant_model(leaf), x_0, t, eps);
  const Tensor guess = slice_channels(output, 0, 2);
  const Tensor L_simple = mean_flat(square(eps - guess));
  const Tensor L_t = vlb_terms(hybrid, x_0, x_t, t, predict(hybrid, output));
  EXPECT_TRUE(close(losses.loss, L_simple + 0.001 * T * L_t, kRoundOff));
  sum(losses.loss).backward();
  const Tensor gradient = leaf.grad();
  EXPECT_TRUE(close(slice_channels(gradient, 0, 2), (guess - eps) * (2.0 / 12), kRoundOff));
  // The variance's half: as if the mean's were a constant.
  const Tensor mean_half = guess.detach();
  const auto bound = [&](const std::vector<Tensor>& v) {
    return 0.001 * T * vlb_terms(hybrid, x_0, x_t, t, predict(hybrid, concat({mean_half, v[0]})));
  };
  Tensor variance_leaf = slice_channels(output, 2, 4).clone();
  variance_leaf.set_requires_grad(true);
  sum(bound({variance_leaf})).backward();
  EXPECT_TRUE(close(slice_channels(gradient, 2, 4), variance_leaf.grad(), kRoundOff));
  const GradcheckReport report = gradcheck(bound, {variance_leaf});
  EXPECT_TRUE(report.passed) << report.message;
}

TEST_F(Terms, GradientsOfTheBoundAreItsDerivatives) {
  for (const ModelMean mean : {ModelMean::kEpsilon, ModelMean::kStartX, ModelMean::kPreviousX}) {
    for (const ModelVariance variance : {ModelVariance::kLearned, ModelVariance::kLearnedRange}) {
      const GaussianDiffusion process(
          betas, {.mean = mean, .variance = variance, .loss = Loss::kRescaledKl});
      const Gaussian truth = q_posterior(process.schedule(), x_0, x_t, t);
      const Tensor near = 0.02 * test::normal_images(6, generator);
      Tensor start = mean == ModelMean::kEpsilon  ? eps + near
                     : mean == ModelMean::kStartX ? x_0 + near
                                                  : truth.mean + near;
      Tensor variance_half = 0.3 * test::normal_images(6, generator);
      if (variance == ModelVariance::kLearned) variance_half = variance_half + truth.log_variance;
      Tensor leaf = concat({start, variance_half});
      leaf.set_requires_grad(true);
      const auto loss = [&](const std::vector<Tensor>& inputs) {
        return training_losses(process, test::constant_model(inputs[0]), x_0, t, eps).loss;
      };
      const GradcheckReport report = gradcheck(loss, {leaf});
      EXPECT_TRUE(report.passed) << report.message;
    }
  }
}

TEST_F(Terms, OnePixelValueIsNeverImpossible) {
  const GaussianDiffusion fixed(betas, {.variance = ModelVariance::kFixedSmall});
  const Tensor far = Tensor::full(x_0.shape(), 50, DType::kFloat64);
  const Prediction p = predict(fixed, far);
  for (double bits : vlb_terms(fixed, x_0, x_t, t, p).to_vector<double>()) {
    EXPECT_TRUE(std::isfinite(bits));
  }
}

}  // namespace
}  // namespace mutilde
