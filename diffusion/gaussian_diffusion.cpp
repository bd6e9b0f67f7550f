#include "diffusion/gaussian_diffusion.h"

#include <cmath>
#include <numeric>

#include "core/ops/ops.h"

namespace mutilde {

namespace {

std::vector<int64_t> all_steps(size_t T) {
  std::vector<int64_t> steps(T);
  std::iota(steps.begin(), steps.end(), 0);
  return steps;
}

// What the network sees for each step. Rescaled timesteps are multiplied in float32, as they are in
// networks trained by the original program.
Tensor model_timestep_table(const std::vector<int64_t>& map, int64_t original_T, bool rescale) {
  const auto scale = static_cast<float>(1000.0 / static_cast<double>(original_T));
  std::vector<double> table;
  for (int64_t t : map) {
    if (t < 0 || t >= original_T) {
      fail<Error>("GaussianDiffusion: step {} of a process of {} steps", t, original_T);
    }
    table.push_back(rescale ? static_cast<double>(static_cast<float>(t) * scale)
                            : static_cast<double>(t));
  }
  return Tensor::from<double>({static_cast<int64_t>(map.size())}, table);
}

}  // namespace

Noise noise_from(Generator& generator) {
  return [&generator](const Tensor& like) {
    return generator.normal(like.shape(), like.dtype(), like.device());
  };
}

Tensor full_timesteps(int64_t t, const Tensor& like) {
  return Tensor::full({like.size(0)}, static_cast<double>(t), DType::kInt64, like.device());
}

GaussianDiffusion::GaussianDiffusion(const std::vector<double>& betas,
                                     const DiffusionConfig& config)
    : GaussianDiffusion(betas, config, all_steps(betas.size()),
                        static_cast<int64_t>(betas.size())) {}

GaussianDiffusion::GaussianDiffusion(const std::vector<double>& betas,
                                     const DiffusionConfig& config,
                                     const std::vector<int64_t>& timestep_map, int64_t original_T)
    : config_(config),
      schedule_(betas),
      timestep_map_(timestep_map),
      model_timesteps_(model_timestep_table(timestep_map, original_T, config.rescale_timesteps)),
      large_variance_(schedule_.beta.clone()),
      log_large_variance_(schedule_.log_beta.clone()),
      after_first_(Tensor::full({schedule_.T}, 1, DType::kFloat64)) {
  if (timestep_map.size() != betas.size()) {
    fail<Error>("GaussianDiffusion: {} original timesteps for {} steps", timestep_map.size(),
                betas.size());
  }
  // beta at the first step is too wide for the last touch to an image: beta_tilde's second value
  // stands in for it, as in kFixedSmall's log.
  log_large_variance_.data<double>()[0] = schedule_.log_beta_tilde_clipped.data<double>()[0];
  large_variance_.data<double>()[0] = std::exp(log_large_variance_.data<double>()[0]);
  after_first_.data<double>()[0] = 0;
}

bool GaussianDiffusion::learns_variance() const {
  return config_.variance == ModelVariance::kLearned ||
         config_.variance == ModelVariance::kLearnedRange;
}

Tensor GaussianDiffusion::model_timesteps(const Tensor& t) const {
  const Tensor seen = gather_timesteps(model_timesteps_.to(t.device()), t, 1, DType::kFloat64);
  return cast(seen, config_.rescale_timesteps ? DType::kFloat32 : DType::kInt64);
}

ModelOutput GaussianDiffusion::call_model(const Model& model, const Tensor& x_t,
                                          const Tensor& t) const {
  const Tensor output = model(x_t, model_timesteps(t));
  const int64_t C = x_t.size(-1);
  const Shape expected = x_t.shape().with(-1, learns_variance() ? 2 * C : C);
  if (!(output.shape() == expected)) {
    fail<ShapeError>("GaussianDiffusion: the model returned {} for x_t {}, {} expected{}",
                     output.shape(), x_t.shape(), expected,
                     learns_variance() ? " (mean and variance)" : "");
  }
  if (!learns_variance()) return {output, {}};
  return {slice_channels(output, 0, C), slice_channels(output, C, 2 * C)};
}

// Eq. 15: Sigma_theta = exp(v log beta_t + (1 - v) log beta_tilde_t), where v = (output + 1) / 2.
// The output is not confined to [-1, 1], so v may leave [0, 1].
Tensor GaussianDiffusion::learned_range_log_variance(const Tensor& output, const Tensor& t) const {
  const Tensor v = (output + 1.0) / 2.0;
  const Tensor log_beta_t = at_timestep(schedule_.log_beta, t, output);
  const Tensor log_beta_tilde_t = at_timestep(schedule_.log_beta_tilde_clipped, t, output);
  return v * log_beta_t + (1.0 - v) * log_beta_tilde_t;
}

void GaussianDiffusion::set_variance(Prediction& p, const ModelOutput& output, const Tensor& x_t,
                                     const Tensor& t) const {
  switch (config_.variance) {
    case ModelVariance::kLearned:
      p.log_variance = output.variance;
      p.variance = exp(p.log_variance);
      break;
    case ModelVariance::kLearnedRange:
      p.log_variance = learned_range_log_variance(output.variance, t);
      p.variance = exp(p.log_variance);
      break;
    case ModelVariance::kFixedSmall:
      p.log_variance = at_timestep(schedule_.log_beta_tilde_clipped, t, x_t);
      p.variance = posterior_variance(schedule_, t, x_t);
      break;
    case ModelVariance::kFixedLarge:
      p.log_variance = at_timestep(log_large_variance_, t, x_t);
      p.variance = at_timestep(large_variance_, t, x_t);
      break;
  }
}

// From eps this is eq. 9 solved for x_0, the first half of mean_through_x0 in posterior.h.
Tensor GaussianDiffusion::x_0_hat_of(const ModelOutput& output, const Tensor& x_t, const Tensor& t,
                                     const SamplingOptions& options) const {
  Tensor x_0_hat = output.mean;  // kStartX
  if (config_.mean == ModelMean::kEpsilon) {
    x_0_hat = predict_x0_from_eps(schedule_, x_t, t, output.mean);
  } else if (config_.mean == ModelMean::kPreviousX) {
    x_0_hat = predict_x0_from_x_prev(schedule_, x_t, t, output.mean);
  }
  if (options.denoise) x_0_hat = options.denoise(x_0_hat);
  return options.clip ? clamp(x_0_hat, -1, 1) : x_0_hat;
}

// Eq. 3: p_theta(x_{t-1} | x_t) = N(mu_theta, Sigma_theta). If the network predicts eps or x_0, the
// mean is found through x_0_hat, by eq. 11 (mean_through_x0 in posterior.h, which says why not by
// eq. 13). If it predicts x_{t-1}, its output is the mean as it is: only x_0_hat is clipped.
Prediction GaussianDiffusion::p_mean_variance(const ModelOutput& output, const Tensor& x_t,
                                              const Tensor& t,
                                              const SamplingOptions& options) const {
  Prediction p;
  p.x_0_hat = x_0_hat_of(output, x_t, t, options);
  p.mu_theta = config_.mean == ModelMean::kPreviousX
                   ? output.mean
                   : q_posterior_mean(schedule_, p.x_0_hat, x_t, t);
  set_variance(p, output, x_t, t);
  return p;
}

Prediction GaussianDiffusion::p_mean_variance(const Model& model, const Tensor& x_t,
                                              const Tensor& t,
                                              const SamplingOptions& options) const {
  return p_mean_variance(call_model(model, x_t, t), x_t, t, options);
}

Sample GaussianDiffusion::p_sample(const Model& model, const Tensor& x_t, const Tensor& t,
                                   const Tensor& eps, const SamplingOptions& options) const {
  const NoGrad no_grad;
  const Prediction p = p_mean_variance(model, x_t, t, options);
  const Tensor sigma_t = at_timestep(after_first_, t, x_t) * exp(p.log_variance * 0.5);
  return {p.mu_theta + sigma_t * eps, p.x_0_hat};
}

Tensor GaussianDiffusion::p_sample_loop(const Model& model, const Tensor& x_T, const Noise& noise,
                                        const SamplingOptions& options) const {
  Tensor x_t = x_T;
  for (int64_t t = T() - 1; t >= 0; --t) {
    const Sample sample = p_sample(model, x_t, full_timesteps(t, x_t), noise(x_t), options);
    if (options.on_step) options.on_step({T() - 1 - t, t, x_t, sample});
    x_t = sample.x;
  }
  return x_t;
}

}  // namespace mutilde
