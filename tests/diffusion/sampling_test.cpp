// Sampling: what can be said of it without the numbers of another program.
#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/ops/ops.h"
#include "diffusion/losses.h"
#include "support/diffusion.h"
#include "support/reference.h"

namespace mutilde {
namespace {

using test::close;
using test::LoopModel;

/// Float64 images at every timestep of a short process, and a model that is neither right nor
/// constant.
class Sampling : public ::testing::Test {
 protected:
  static constexpr int64_t T = 25;
  Generator generator{5};
  std::vector<double> betas = cosine_beta_schedule(T);
  GaussianDiffusion diffusion{betas, {.variance = ModelVariance::kFixedSmall}};
  Tensor t = Tensor::arange(T);
  Tensor x_t = test::normal_images(T, generator), eps = test::normal_images(T, generator);
  Model model = [](const Tensor& x, const Tensor&) { return sin(2.0 * x) * 0.7; };
};

TEST_F(Sampling, MeanOfTheModelIsEq13WithoutClippingAsEq3Says) {
  const Prediction p = diffusion.p_mean_variance(model, x_t, t, {.clip = false});
  const Tensor eps_theta = model(x_t, t);
  for (int64_t i = 0; i < x_t.numel(); ++i) {
    const int64_t step = i / 12;
    const double beta = betas[static_cast<size_t>(step)],
                 alpha_bar = test::alpha_bar_at(betas, step);
    const double expected =
        (x_t.data<double>()[i] - beta / std::sqrt(1 - alpha_bar) * eps_theta.data<double>()[i]) /
        std::sqrt(1 - beta);
    ASSERT_NEAR(p.mu_theta.data<double>()[i], expected, 1e-11 * std::max(1.0, std::fabs(expected)));
    const double variance = (1 - test::alpha_bar_at(betas, step - 1)) / (1 - alpha_bar) * beta;
    ASSERT_NEAR(p.variance.data<double>()[step], variance, 1e-13);
  }
}

TEST_F(Sampling, LearnedRangeInterpolatesBetweenTheVariancesAsEq15Says) {
  const GaussianDiffusion learned(betas, {.variance = ModelVariance::kLearnedRange});
  const Tensor values = test::normal_images(T, generator);  // beyond [-1, 1] too
  const Model both = test::constant_model(concat({eps, values}));
  const Prediction p = learned.p_mean_variance(both, x_t, t);
  for (int64_t i = 12; i < x_t.numel(); ++i) {  // at t = 0, beta_tilde is 0
    const int64_t step = i / 12;
    const double beta = betas[static_cast<size_t>(step)];
    const double beta_tilde =
        (1 - test::alpha_bar_at(betas, step - 1)) / (1 - test::alpha_bar_at(betas, step)) * beta;
    const double v = (values.data<double>()[i] + 1) / 2;
    const double expected = std::exp(v * std::log(beta) + (1 - v) * std::log(beta_tilde));
    ASSERT_NEAR(p.variance.data<double>()[i], expected, 1e-11 * expected);
  }
}

TEST_F(Sampling, DdimStepFollowsItsEq12) {
  for (double eta : {0.0, 0.4, 1.0}) {
    const Sample sample = diffusion.ddim_sample(model, x_t, t, eps, {.clip = false, .eta = eta});
    const Tensor eps_theta = model(x_t, t);
    for (int64_t i = 0; i < x_t.numel(); ++i) {
      const int64_t step = i / 12;
      const double alpha_bar = test::alpha_bar_at(betas, step);
      const double alpha_bar_prev = test::alpha_bar_at(betas, step - 1);
      const double noise = eps_theta.data<double>()[i];
      const double x_0_hat =
          (x_t.data<double>()[i] - std::sqrt(1 - alpha_bar) * noise) / std::sqrt(alpha_bar);
      const double sigma = eta * std::sqrt((1 - alpha_bar_prev) / (1 - alpha_bar)) *
                           std::sqrt(1 - alpha_bar / alpha_bar_prev);
      const double expected = std::sqrt(alpha_bar_prev) * x_0_hat +
                              std::sqrt(1 - alpha_bar_prev - sigma * sigma) * noise +
                              sigma * eps.data<double>()[i];
      ASSERT_NEAR(sample.x.data<double>()[i], expected, 1e-10 * std::max(1.0, std::fabs(expected)))
          << "eta = " << eta << ", t = " << step;
    }
  }
}

// In float32 1 - alpha_bar has three digits left at the first steps of a linear schedule, so
// nothing may be formed from a float32 alpha_bar there. With a model that always predicts an image
// of zeros, x_t = 0 leaves sigma_t eps of a step, and x_t = 1 leaves the direction's coefficient
// times 1 / sqrt(1 - alpha_bar_t).
TEST_F(Sampling, DdimKeepsItsDigitsInFloat32) {
  const std::vector<double> linear = linear_beta_schedule(1000);
  const GaussianDiffusion process(linear, {.mean = ModelMean::kStartX});
  const Model black = [](const Tensor& x, const Tensor&) { return zeros_like(x); };
  const Tensor zeros = Tensor::zeros({1, 1, 1, 1}), ones = Tensor::full({1, 1, 1, 1}, 1);
  for (int64_t step : {1, 2, 3, 10, 100, 999}) {
    const double alpha_bar = test::alpha_bar_at(linear, step);
    const double alpha_bar_prev = test::alpha_bar_at(linear, step - 1);
    const double sigma = std::sqrt((1 - alpha_bar_prev) / (1 - alpha_bar)) *
                         std::sqrt(1 - alpha_bar / alpha_bar_prev);
    const double direction = std::sqrt((1 - alpha_bar_prev - sigma * sigma) / (1 - alpha_bar));
    // Some ten roundings, none of them in front of a large cancellation.
    const double rtol = 10 * 0x1p-24;
    const SamplingOptions noisy{.eta = 1};
    const Tensor at = full_timesteps(step, zeros);
    EXPECT_NEAR(process.ddim_sample(black, zeros, at, ones, noisy).x.item(), sigma, rtol * sigma);
    EXPECT_NEAR(process.ddim_sample(black, ones, at, zeros, noisy).x.item(), direction,
                rtol * direction);
    if (step + 1 == 1000) continue;
    const double alpha_bar_next = test::alpha_bar_at(linear, step + 1);
    const double back = std::sqrt((1 - alpha_bar_next) / (1 - alpha_bar));
    EXPECT_NEAR(process.ddim_reverse_sample(black, ones, at).x.item(), back, rtol * back);
  }
}

// With eta = 1 the two samplers have the same mean and the same variance.
TEST_F(Sampling, DdimWithFullNoiseIsDdpm) {
  const SamplingOptions options{.clip = false, .eta = 1};
  const Sample ddim = diffusion.ddim_sample(model, x_t, t, eps, options);
  const Sample ddpm = diffusion.p_sample(model, x_t, t, eps, options);
  EXPECT_TRUE(close(ddim.x, ddpm.x, 1e-10));
}

// The step backwards takes x_0_hat and eps_theta at x_t, the step forwards at x_{t+1}: with a model
// that always sees the same noise both are the same, and one undoes the other.
TEST_F(Sampling, DdimBackwardsIsUndoneByDdim) {
  const Tensor x_0 = test::normal_images(3, generator);
  const Model constant = test::constant_model(test::normal_images(3, generator));
  // From t = 0 with its little noise to T - 1; the last step, to pure noise, cannot be undone.
  Tensor x = x_0;
  for (int64_t step = 0; step + 1 < T; ++step) {
    x = diffusion.ddim_reverse_sample(constant, x, full_timesteps(step, x), {.clip = false}).x;
  }
  for (int64_t step = T - 1; step > 0; --step) {
    x = diffusion.ddim_sample(constant, x, full_timesteps(step, x), {}, {.clip = false}).x;
  }
  EXPECT_TRUE(close(x, x_0, 1e-9));
}

TEST_F(Sampling, AddsNoNoiseAtTheFirstTimestep) {
  const Tensor first = test::timesteps({0}), x = x_t.slice(0, 1);
  const Sample one = diffusion.p_sample(model, x, first, eps.slice(0, 1));
  const Sample other = diffusion.p_sample(model, x, first, eps.slice(1, 2));
  EXPECT_TRUE(close(one.x, other.x, 0));
  const Prediction p = diffusion.p_mean_variance(model, x, first);
  EXPECT_TRUE(close(one.x, p.mu_theta, 0));
}

TEST_F(Sampling, FindsTheImageWhenTheModelKnowsIt) {
  const Tensor image = clamp(test::normal_images(2, generator) * 0.4, -1, 1);
  const Model oracle = [&](const Tensor& x, const Tensor& seen) {
    return predict_eps_from_x0(diffusion.schedule(), x, seen, image);
  };
  const Tensor x_T = test::normal_images(2, generator);
  const Noise noise = noise_from(generator);
  EXPECT_TRUE(close(diffusion.p_sample_loop(oracle, x_T, noise), image, 1e-9));
  EXPECT_TRUE(close(diffusion.ddim_sample_loop(oracle, x_T, noise), image, 1e-9));
}

TEST_F(Sampling, IsTheSameFromTheSameSeed) {
  const auto sample = [&](uint64_t seed) {
    Generator random(seed);
    const Tensor x_T = random.normal({2, 2, 3, 2}, DType::kFloat64);
    return diffusion.p_sample_loop(model, x_T, noise_from(random));
  };
  EXPECT_TRUE(close(sample(1), sample(1), 0));
  EXPECT_FALSE(close(sample(1), sample(2), 0));
}

TEST_F(Sampling, ReportsEveryStep) {
  std::vector<int64_t> steps;
  Tensor expected_x_t = test::normal_images(2, generator);
  const Tensor x_T = expected_x_t;
  const auto on_step = [&](const SamplingStep& step) {
    EXPECT_EQ(step.step, static_cast<int64_t>(steps.size()));
    EXPECT_TRUE(close(step.x_t, expected_x_t, 0));
    expected_x_t = step.sample.x;
    steps.push_back(step.t);
  };
  const Tensor x_0 =
      diffusion.p_sample_loop(model, x_T, noise_from(generator), {.on_step = on_step});
  EXPECT_TRUE(close(x_0, expected_x_t, 0));
  ASSERT_EQ(static_cast<int64_t>(steps.size()), T);
  for (int64_t step = 0; step < T; ++step)
    EXPECT_EQ(steps[static_cast<size_t>(step)], T - 1 - step);
}

TEST_F(Sampling, LetsTheImageBeChangedBeforeItIsClipped) {
  const auto halve = [](const Tensor& x_0_hat) { return x_0_hat * 0.5; };
  const Tensor plain = diffusion.p_mean_variance(model, x_t, t, {.clip = false}).x_0_hat;
  const Prediction p = diffusion.p_mean_variance(model, x_t, t, {.denoise = halve});
  EXPECT_TRUE(close(p.x_0_hat, clamp(plain * 0.5, -1, 1), 0));
}

TEST_F(Sampling, RecordsNoGradients) {
  Tensor weight = Tensor::full({}, 0.5, DType::kFloat64);
  weight.set_requires_grad(true);
  const Model trained = [&](const Tensor& x, const Tensor&) { return weight * x; };
  const Tensor x_T = test::normal_images(1, generator);
  EXPECT_FALSE(diffusion.p_sample_loop(trained, x_T, noise_from(generator)).requires_grad());
  EXPECT_FALSE(diffusion.ddim_sample_loop(trained, x_T, noise_from(generator)).requires_grad());
  EXPECT_FALSE(diffusion.ddim_reverse_sample_loop(trained, x_T).requires_grad());
  EXPECT_TRUE(diffusion.p_mean_variance(trained, x_t, t).mu_theta.requires_grad());
}

TEST_F(Sampling, WorksInOneStep) {
  for (const auto& [name, variance] : test::variance_kinds()) {
    const GaussianDiffusion one(cosine_beta_schedule(1), {.variance = variance});
    const LoopModel loop_model{0.3, 0.1, test::is_learned(variance)};
    const Tensor x_T = test::normal_images(2, generator);
    for (const Tensor& x : {one.p_sample_loop(loop_model, x_T, noise_from(generator)),
                            one.ddim_sample_loop(loop_model, x_T, noise_from(generator)),
                            bits_per_dim(one, loop_model, x_T, noise_from(generator)).total}) {
      for (double value : x.to_vector<double>()) EXPECT_TRUE(std::isfinite(value)) << name;
    }
  }
}

TEST_F(Sampling, ShowsTheModelRescaledTimestepsAsFloats) {
  const GaussianDiffusion plain(cosine_beta_schedule(4000));
  const Tensor some = test::timesteps({0, 1, 3999});
  EXPECT_EQ(plain.model_timesteps(some).dtype(), DType::kInt64);
  EXPECT_EQ(plain.model_timesteps(some).to_vector<int64_t>(), (std::vector<int64_t>{0, 1, 3999}));
  const GaussianDiffusion rescaled(cosine_beta_schedule(4000), {.rescale_timesteps = true});
  EXPECT_EQ(rescaled.model_timesteps(some).dtype(), DType::kFloat32);
  EXPECT_EQ(rescaled.model_timesteps(some).to_vector<double>(),
            (std::vector<double>{0, 0.25, 999.75}));
}

TEST_F(Sampling, NamesWhatIsWrong) {
  const auto fails_with = [](const auto& call, const std::string& text) {
    EXPECT_THAT(call, ::testing::ThrowsMessage<Error>(::testing::HasSubstr(text)));
  };
  const GaussianDiffusion learned(betas, {.variance = ModelVariance::kLearned});
  fails_with([&] { learned.p_mean_variance(model, x_t, t); },
             "[25,2,3,4] expected (mean and variance)");
  fails_with([&] { diffusion.p_mean_variance(test::constant_model(x_t.slice(0, 3)), x_t, t); },
             "[3,2,3,2]");
  fails_with([&] { diffusion.ddim_sample(model, x_t, t, eps, {.eta = 1.5}); }, "eta is 1.5");
  fails_with([&] { diffusion.ddim_reverse_sample(model, x_t, t, {.eta = 0.5}); }, "eta is 0.5");
  fails_with(
      [&] {
        GaussianDiffusion(betas, {}, {0, 1}, 10);
      },
      "2 original timesteps for 25 steps");
  fails_with([&] { GaussianDiffusion({0.1}, {}, {10}, 10); }, "step 10 of a process of 10");
}

}  // namespace
}  // namespace mutilde
