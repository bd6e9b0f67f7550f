// The bound and the training losses, with their gradients, against the original's numbers.
#include <cmath>
#include <numbers>

#include <gtest/gtest.h>

#include "core/ops/ops.h"
#include "diffusion/losses.h"
#include "support/diffusion.h"
#include "support/reference.h"

namespace mutilde {
namespace {

using test::close;
using test::is_learned;
using test::loss_kinds;
using test::mean_kinds;
using test::variance_kinds;

/// The likelihood of one pixel in float32 as the original's tensor library computes it: its tanh is
/// exactly 1 beyond 8.6643, where the correctly rounded one (ours) is 1 - 2^-24 up to 9.01. That is
/// far out in the tail, where 1 + tanh is one unit of round-off or none at all, and the logarithm
/// of that -17.3 or the floor of -27.6.
float log_likelihood_as_there(float x, float mean, float log_scale) {
  const auto tanh_there = [](float u) {
    return std::fabs(u) > 8.664339742f ? std::copysign(1.0f, u) : std::tanh(u);
  };
  const auto cdf = [&](float z) {
    const auto scale = static_cast<float>(std::sqrt(2 / std::numbers::pi));
    return 0.5f * (1.0f + tanh_there(scale * (z + 0.044715f * (z * z * z))));
  };
  const auto log_of = [](float p) { return std::log(std::fmax(p, 1e-12f)); };
  const float inverse_scale = std::exp(-log_scale), half_bin = 1.0f / 255;
  const float below_upper = cdf(inverse_scale * (x - mean + half_bin));
  const float below_lower = cdf(inverse_scale * (x - mean - half_bin));
  if (x < -0.999f) return log_of(below_upper);
  if (x > 0.999f) return log_of(1.0f - below_lower);
  return log_of(below_upper - below_lower);
}

Tensor log_likelihood_as_there(const Tensor& x, const Tensor& mean, const Tensor& log_scale) {
  const Tensor out = empty_like(x), spread = broadcast_to(log_scale, x.shape());
  for (int64_t i = 0; i < x.numel(); ++i) {
    out.data<float>()[i] =
        log_likelihood_as_there(x.data<float>()[i], mean.data<float>()[i], spread.data<float>()[i]);
  }
  return out;
}

bool is_bound(Loss loss) { return loss == Loss::kKl || loss == Loss::kRescaledKl; }

/// One file of the reference: "gaussian_linear" and the like, where the model's output is random,
/// or "gaussian_good_linear", where it is near the truth.
class LossesReference : public ::testing::TestWithParam<std::string> {
 protected:
  bool good() const { return reference.has("step_noise"); }

  Tensor output(const std::string& mean, const std::string& variance) const {
    const bool learned = variance.starts_with("LEARNED");
    if (!good()) return reference.read_images(learned ? "output6" : "output3");
    const Tensor mean_half = reference.read_images("output_mean." + mean);
    if (!learned) return mean_half;
    return concat({mean_half, reference.read_images("output_variance." + variance)});
  }

  /// `terms` with L_0 replaced by what the original's tanh makes of it. Only where the model's
  /// output is random is there a difference: near the truth no pixel is that unlikely.
  Tensor with_first_as_there(const Tensor& terms, const Prediction& p) const {
    if (good()) return terms;
    const Tensor nats = log_likelihood_as_there(x_0, p.mu_theta, p.log_variance * 0.5);
    const Tensor first = mean_flat(-nats) / std::numbers::ln2;
    return where(less(t.to(DType::kFloat32), Tensor::full({}, 0.5)), first, terms);
  }

  // The terms of the bound are differences of near numbers.
  static constexpr double kBoundRtol = 1e-4;
  double rtol() const { return good() ? 1e-4 : 1e-5; }

  test::Reference reference{GetParam()};
  std::vector<double> betas = named_beta_schedule(reference.setting("schedule"), 1000);
  Tensor x_0 = reference.read_images("x_0"), x_t = reference.read_images("x_t");
  Tensor noise = reference.read_images("noise");
  Tensor t = reference.read("t");
};

INSTANTIATE_TEST_SUITE_P(Files, LossesReference,
                         ::testing::Values("gaussian_linear", "gaussian_cosine",
                                           "gaussian_good_linear", "gaussian_good_cosine"),
                         [](const auto& file) { return file.param; });

TEST_P(LossesReference, TermsOfTheBound) {
  for (const auto& [mean_name, mean] : mean_kinds()) {
    for (const auto& [variance_name, variance] : variance_kinds()) {
      const GaussianDiffusion diffusion(betas, {.mean = mean, .variance = variance});
      const Model model = test::constant_model(output(mean_name, variance_name));
      for (bool clip : {true, false}) {
        const std::string key =
            "vb." + mean_name + "." + variance_name + (clip ? ".clip" : ".noclip");
        const Prediction p = diffusion.p_mean_variance(model, x_t, t, {.clip = clip});
        const Tensor terms = with_first_as_there(vlb_terms(diffusion, x_0, x_t, t, p), p);
        EXPECT_TRUE(close(terms, reference.read(key), kBoundRtol)) << key;
      }
    }
  }
}

TEST_P(LossesReference, TrainingLosses) {
  const double T = 1000;
  for (const auto& [loss_name, loss] : loss_kinds()) {
    for (const auto& [mean_name, mean] : mean_kinds()) {
      for (const auto& [variance_name, variance] : variance_kinds()) {
        const std::string key = "loss." + loss_name + "." + mean_name + "." + variance_name + ".";
        SCOPED_TRACE(key);
        const GaussianDiffusion diffusion(betas,
                                          {.mean = mean, .variance = variance, .loss = loss});
        const Model model = test::constant_model(output(mean_name, variance_name));
        const TrainingLosses losses = training_losses(diffusion, model, x_0, t, noise);
        ASSERT_EQ(losses.mse.defined(), reference.has(key + "mse"));
        ASSERT_EQ(losses.vb.defined(), reference.has(key + "vb"));
        if (losses.mse.defined()) {
          EXPECT_TRUE(close(losses.mse, reference.read(key + "mse"), rtol()));
        }
        if (!is_bound(loss) && !losses.vb.defined()) {
          EXPECT_TRUE(close(losses.loss, reference.read(key + "loss"), rtol()));
          continue;
        }
        // What the original's tanh adds to L_0, at the weight of the bound in this loss.
        const Tensor noisy = q_sample(diffusion.schedule(), x_0, t, noise);
        const Prediction p = diffusion.p_mean_variance(model, noisy, t, {.clip = false});
        const Tensor terms = vlb_terms(diffusion, x_0, noisy, t, p);
        const double weight = loss == Loss::kRescaledKl ? T : 1;
        const Tensor there = (with_first_as_there(terms, p) - terms) * weight;
        EXPECT_TRUE(close(losses.loss + there, reference.read(key + "loss"), kBoundRtol));
        if (losses.vb.defined()) {
          EXPECT_TRUE(close(losses.vb + there, reference.read(key + "vb"), kBoundRtol));
        }
      }
    }
  }
}

TEST_P(LossesReference, GradientsOfTheModelsOutput) {
  int compared = 0;
  for (const auto& [loss_name, loss] : loss_kinds()) {
    for (const auto& [variance_name, variance] : variance_kinds()) {
      const std::string key = "loss." + loss_name + ".EPSILON." + variance_name + ".grad_output";
      if (!reference.has(key)) continue;
      const GaussianDiffusion diffusion(betas, {.variance = variance, .loss = loss});
      Tensor leaf = output("EPSILON", variance_name).clone();
      leaf.set_requires_grad(true);
      mean(training_losses(diffusion, test::constant_model(leaf), x_0, t, noise).loss).backward();
      // A random output's pixels at t = 0 are in the tail, where the gradient is round-off over
      // round-off; the files with a good output have a t = 0 too.
      const bool has_bound = is_bound(loss) || is_learned(variance);
      const int64_t first = has_bound && !good() ? 1 : 0;
      const Tensor expected = reference.read_images(key), gradient = leaf.grad();
      EXPECT_TRUE(close(gradient.slice(first, gradient.size(0)),
                        expected.slice(first, expected.size(0)), has_bound ? kBoundRtol : rtol()))
          << key;
      ++compared;
    }
  }
  EXPECT_GE(compared, good() ? 16 : 8);
}

TEST_P(LossesReference, DiscretizedLogLikelihood) {
  const Tensor mean = reference.read_images("dgll.mean");
  const Tensor log_scale = reference.read_images("dgll.log_scale");
  const Tensor expected = reference.read_images("dgll.out");
  const Tensor ours = discretized_gaussian_log_likelihood(x_0, mean, log_scale);
  if (good()) {
    // Near the truth a bin's probability is a difference of near numbers.
    EXPECT_TRUE(close(ours, expected, 1e-3));
    return;
  }
  EXPECT_TRUE(close(log_likelihood_as_there(x_0, mean, log_scale), expected, rtol()));
  // Ours is the same but for pixels with a probability of a few 2^-25, which exp(-16) is: there
  // both say no more than that it is small.
  const Tensor tail = Tensor::full({}, -16), in_tail = less(expected, tail);
  EXPECT_TRUE(close(where(in_tail, tail, ours), where(in_tail, tail, expected), rtol()));
  EXPECT_LT(max(where(in_tail, ours, tail)).item(), -15.9);
}

}  // namespace
}  // namespace mutilde
