// Everything that GaussianDiffusion computes in one step, against the original's numbers.
#include <cmath>

#include <gtest/gtest.h>

#include "core/ops/ops.h"
#include "diffusion/gaussian_diffusion.h"
#include "diffusion/losses.h"
#include "support/diffusion.h"
#include "support/reference.h"

namespace mutilde {
namespace {

using test::close;
using test::is_learned;
using test::mean_kinds;
using test::variance_kinds;

constexpr double kRtol = 1e-5;  // float32 round-off with a margin

/// Ours may be one value an image, [N, 1, 1, 1].
::testing::AssertionResult close_spread(const Tensor& ours, const Tensor& expected, double rtol) {
  return close(broadcast_to(ours, expected.shape()), expected, rtol);
}

class GaussianReference : public ::testing::TestWithParam<std::string> {
 protected:
  GaussianDiffusion diffusion(ModelMean mean, ModelVariance variance) const {
    return GaussianDiffusion(betas, {.mean = mean, .variance = variance});
  }
  Model model(ModelVariance variance) const {
    return test::constant_model(is_learned(variance) ? output6 : output3);
  }
  Tensor images(const std::string& name) const { return reference.read_images(name); }

  test::Reference reference{"gaussian_" + GetParam()};
  std::vector<double> betas = named_beta_schedule(GetParam(), 1000);
  Schedule schedule{betas};
  Tensor x_0 = images("x_0"), x_t = images("x_t"), noise = images("noise");
  Tensor output3 = images("output3"), output6 = images("output6");
  Tensor t = reference.read("t");
};

INSTANTIATE_TEST_SUITE_P(Schedules, GaussianReference, ::testing::Values("linear", "cosine"),
                         [](const auto& schedule) { return schedule.param; });

TEST_P(GaussianReference, ForwardProcess) {
  EXPECT_TRUE(close(q_sample(schedule, x_0, t, noise), x_t, kRtol));
  const Gaussian q = q_mean_variance(schedule, x_0, t);
  EXPECT_TRUE(close(q.mean, images("q.mean"), kRtol));
  EXPECT_TRUE(close_spread(q.variance, images("q.variance"), kRtol));
  EXPECT_TRUE(close_spread(q.log_variance, images("q.log_variance"), kRtol));
}

TEST_P(GaussianReference, PosteriorOfTheTruth) {
  const Gaussian q = q_posterior(schedule, x_0, x_t, t);
  EXPECT_TRUE(close(q.mean, images("q_posterior.mean"), kRtol));
  EXPECT_TRUE(close_spread(q.variance, images("q_posterior.variance"), kRtol));
  EXPECT_TRUE(close_spread(q.log_variance, images("q_posterior.log_variance"), kRtol));
}

TEST_P(GaussianReference, ImageNoiseAndPreviousStatePredictEachOther) {
  EXPECT_TRUE(
      close(predict_x0_from_eps(schedule, x_t, t, output3), images("predict_x0_from_eps"), kRtol));
  EXPECT_TRUE(
      close(predict_eps_from_x0(schedule, x_t, t, x_0), images("predict_eps_from_x0"), kRtol));
  EXPECT_TRUE(close(predict_x0_from_x_prev(schedule, x_t, t, output3),
                    images("predict_x0_from_xprev"), kRtol));
}

TEST_P(GaussianReference, PredictionsOfEveryKindOfMeanAndVariance) {
  for (const auto& [mean_name, mean] : mean_kinds()) {
    for (const auto& [variance_name, variance] : variance_kinds()) {
      for (bool clip : {true, false}) {
        const std::string key =
            "p." + mean_name + "." + variance_name + (clip ? ".clip." : ".noclip.");
        SCOPED_TRACE(key);
        const Prediction p =
            diffusion(mean, variance).p_mean_variance(model(variance), x_t, t, {.clip = clip});
        EXPECT_TRUE(close(p.mu_theta, images(key + "mean"), kRtol));
        EXPECT_TRUE(close_spread(p.variance, images(key + "variance"), kRtol));
        EXPECT_TRUE(close_spread(p.log_variance, images(key + "log_variance"), kRtol));
        EXPECT_TRUE(close(p.x_0_hat, images(key + "pred_xstart"), kRtol));
      }
    }
  }
}

TEST_P(GaussianReference, SamplingSteps) {
  for (const auto& [name, variance] : variance_kinds()) {
    const std::string key = "p_sample." + name;
    if (!reference.has(key + ".sample")) continue;
    const Sample sample = diffusion(ModelMean::kEpsilon, variance)
                              .p_sample(model(variance), x_t, t, images(key + ".noise"));
    EXPECT_TRUE(close(sample.x, images(key + ".sample"), kRtol)) << key;
  }
}

double largest(const Tensor& x) { return max(abs(x)).item(); }

/// What the original's DDIM loses in float32, for values of these sizes at step t: it looks
/// alpha_bar up as float32, where 1 - alpha_bar is wrong by 2^-25, and forms sigma_t^2 / eta^2 with
/// five such roundings. Of a coefficient whose square is as small as 1e-4 that leaves three digits,
/// and eps_theta, its factor, is in the hundreds there. At t = 0 all of them are exact zeros.
double lost_by_the_original(const Schedule& schedule, int64_t t, double eta, double eps_theta,
                            double eps) {
  if (t == 0) return 0;
  const double root = std::sqrt(schedule.beta_tilde.data<double>()[t]), sigma = eta * root;
  const double direction =
      std::sqrt(schedule.one_minus_alpha_bar_prev.data<double>()[t] - sigma * sigma);
  return 0x1p-25 * ((1 + 5 * eta * eta) * eps_theta / (2 * direction) + 5 * eta * eps / (2 * root));
}

TEST_P(GaussianReference, DdimSteps) {
  for (const auto& [name, mean] : mean_kinds()) {
    if (mean == ModelMean::kPreviousX) continue;
    const GaussianDiffusion process = diffusion(mean, ModelVariance::kFixedLarge);
    for (const std::string eta_text : {"0.0", "0.5", "1.0"}) {
      const std::string key = "ddim." + name + "." + eta_text;
      SCOPED_TRACE(key);
      const double eta = std::stod(eta_text);
      const Tensor eps = images(key + ".noise"), expected = images(key + ".sample");
      const Sample sample =
          process.ddim_sample(test::constant_model(output3), x_t, t, eps, {.eta = eta});
      EXPECT_TRUE(close(sample.x_0_hat, images(key + ".pred_xstart"), kRtol));
      const Tensor eps_theta = predict_eps_from_x0(schedule, x_t, t, sample.x_0_hat);
      for (int64_t i = 0; i < t.numel(); ++i) {
        const auto row = [i](const Tensor& x) { return x.slice(i, i + 1); };
        const double lost =
            lost_by_the_original(schedule, t.values<int64_t>()[static_cast<size_t>(i)], eta,
                                 largest(row(eps_theta)), largest(row(eps)));
        EXPECT_TRUE(close(row(sample.x), row(expected), kRtol, lost)) << "image " << i;
      }
      // Ours loses nothing against float64, which the original's float32 numbers cannot show.
      const auto wide = [](const Tensor& x) { return x.to(DType::kFloat64); };
      const Sample exact = process.ddim_sample(test::constant_model(wide(output3)), wide(x_t), t,
                                               wide(eps), {.eta = eta});
      EXPECT_TRUE(close(sample.x, exact.x, kRtol));
    }
  }
}

TEST_P(GaussianReference, DdimStepsBackwards) {
  const GaussianDiffusion process = diffusion(ModelMean::kEpsilon, ModelVariance::kFixedLarge);
  const Model constant = test::constant_model(output3);
  for (const bool clip : {true, false}) {
    const Sample sample = process.ddim_reverse_sample(constant, x_t, t, {.clip = clip});
    const std::string key = clip ? "ddim_reverse.sample" : "ddim_reverse_noclip.sample";
    EXPECT_TRUE(close(sample.x, images(key), kRtol)) << key;
  }
}

TEST_P(GaussianReference, PriorDivergenceAndDistributionFunction) {
  const GaussianDiffusion process(betas);
  EXPECT_TRUE(close(prior_bpd(process, x_0), reference.read("prior_bpd"), kRtol));
  const Tensor kl = normal_kl(reference.read("kl.mean1"), reference.read("kl.logvar1"),
                              reference.read("kl.mean2"), reference.read("kl.logvar2"));
  EXPECT_TRUE(close(kl, reference.read("kl.out"), kRtol));
  const Tensor cdf = approx_standard_normal_cdf(reference.read("cdf.x"));
  EXPECT_TRUE(close(cdf, reference.read("cdf.out"), kRtol));
}

/// The same with an output near the truth, so that small timesteps are well conditioned.
class GaussianGoodReference : public ::testing::TestWithParam<std::string> {
 protected:
  Tensor output(const std::string& mean, const std::string& variance) const {
    const Tensor mean_half = reference.read_images("output_mean." + mean);
    const std::string key = "output_variance." + variance;
    return reference.has(key) ? concat({mean_half, reference.read_images(key)}) : mean_half;
  }

  test::Reference reference{"gaussian_good_" + GetParam()};
  std::vector<double> betas = named_beta_schedule(GetParam(), 1000);
  Tensor x_t = reference.read_images("x_t"), step_noise = reference.read_images("step_noise");
  Tensor t = reference.read("t");
};

INSTANTIATE_TEST_SUITE_P(Schedules, GaussianGoodReference, ::testing::Values("linear", "cosine"),
                         [](const auto& schedule) { return schedule.param; });

TEST_P(GaussianGoodReference, SamplingSteps) {
  for (const auto& [mean_name, mean] : mean_kinds()) {
    for (const auto& [variance_name, variance] : variance_kinds()) {
      const std::string kinds = mean_name + "." + variance_name;
      const GaussianDiffusion process(betas, {.mean = mean, .variance = variance});
      const Model model = test::constant_model(output(mean_name, variance_name));
      const Sample sample = process.p_sample(model, x_t, t, step_noise);
      EXPECT_TRUE(close(sample.x, reference.read_images("p_sample." + kinds), 1e-4)) << kinds;
      if (mean != ModelMean::kEpsilon) continue;
      const Prediction p = process.p_mean_variance(model, x_t, t);
      EXPECT_TRUE(
          close_spread(p.log_variance, reference.read_images("p." + kinds + ".log_variance"), 1e-4))
          << kinds;
    }
  }
}

TEST_P(GaussianGoodReference, DdimSteps) {
  for (const auto& [name, mean] : mean_kinds()) {
    const GaussianDiffusion process(betas, {.mean = mean});
    const Model model = test::constant_model(output(name, "FIXED_LARGE"));
    const Sample sample = process.ddim_sample(model, x_t, t, step_noise, {.eta = 0.5});
    EXPECT_TRUE(close(sample.x, reference.read_images("ddim." + name + ".0.5"), 1e-4)) << name;
  }
}

}  // namespace
}  // namespace mutilde
