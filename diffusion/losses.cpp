#include "diffusion/losses.h"

#include <cmath>
#include <numbers>

#include "core/ops/ops.h"

namespace mutilde {

namespace {

Tensor constant(double value, const Tensor& like) {
  return Tensor::full({}, value, like.dtype(), like.device());
}

// Nats for each element -> bits per dimension for each image.
Tensor bits_of(const Tensor& nats) { return mean_flat(nats) / std::numbers::ln2; }

// log(p), where round-off may have made p 0.
Tensor log_probability(const Tensor& p) { return log(clamp(p, 1e-12, 1)); }

}  // namespace

Tensor normal_kl(const Tensor& mean_1, const Tensor& log_variance_1, const Tensor& mean_2,
                 const Tensor& log_variance_2) {
  const Tensor log_ratio = log_variance_1 - log_variance_2;
  return 0.5 * (exp(log_ratio) - log_ratio - 1.0 + square(mean_1 - mean_2) * exp(-log_variance_2));
}

Tensor approx_standard_normal_cdf(const Tensor& x) {
  const double scale = std::sqrt(2 / std::numbers::pi);
  return 0.5 * (1.0 + tanh(scale * (x + 0.044715 * (square(x) * x))));
}

Tensor discretized_gaussian_log_likelihood(const Tensor& x, const Tensor& mean,
                                           const Tensor& log_scale) {
  constexpr double kHalfBin = 1.0 / 255, kOutermost = 0.999;  // the next bin is at 253 / 255
  const Tensor centred = x - mean;
  const Tensor inverse_scale = exp(-log_scale);
  const Tensor below_upper = approx_standard_normal_cdf(inverse_scale * (centred + kHalfBin));
  const Tensor below_lower = approx_standard_normal_cdf(inverse_scale * (centred - kHalfBin));
  const Tensor is_lowest = less(x, constant(-kOutermost, x));
  const Tensor is_highest = less(constant(kOutermost, x), x);
  const Tensor inside = log_probability(below_upper - below_lower);
  return where(is_lowest, log_probability(below_upper),
               where(is_highest, log_probability(1.0 - below_lower), inside));
}

// Eq. 5: L_0 = -log p_theta(x_0 | x_1), where t is 0;
// Eq. 6: L_t = KL(q(x_{t-1} | x_t, x_0) || p_theta(x_{t-1} | x_t)) elsewhere.
Tensor vlb_terms(const GaussianDiffusion& diffusion, const Tensor& x_0, const Tensor& x_t,
                 const Tensor& t, const Prediction& prediction) {
  const Gaussian q = q_posterior(diffusion.schedule(), x_0, x_t, t);
  const Tensor kl = normal_kl(q.mean, q.log_variance, prediction.mu_theta, prediction.log_variance);
  const Tensor log_likelihood =
      discretized_gaussian_log_likelihood(x_0, prediction.mu_theta, prediction.log_variance * 0.5);
  const Tensor is_first = less(cast(t, x_0.dtype()), constant(0.5, x_0));
  return where(is_first, bits_of(-log_likelihood), bits_of(kl));
}

// Eq. 7: L_T = KL(q(x_T | x_0) || N(0, I)).
Tensor prior_bpd(const GaussianDiffusion& diffusion, const Tensor& x_0) {
  const Tensor last = full_timesteps(diffusion.T() - 1, x_0);
  const Gaussian q = q_mean_variance(diffusion.schedule(), x_0, last);
  return bits_of(normal_kl(q.mean, q.log_variance, constant(0, x_0), constant(0, x_0)));
}

// Eq. 4: L_vlb = L_0 + L_1 + ... + L_T.
BitsPerDim bits_per_dim(const GaussianDiffusion& diffusion, const Model& model, const Tensor& x_0,
                        const Noise& noise, bool clip) {
  const NoGrad no_grad;
  std::vector<Tensor> vlb, x_0_mse, eps_mse;  // columns
  const auto add_column = [N = x_0.size(0)](std::vector<Tensor>& columns, const Tensor& column) {
    columns.push_back(column.reshape({N, 1}));
  };
  for (int64_t step = diffusion.T() - 1; step >= 0; --step) {
    const Tensor t = full_timesteps(step, x_0);
    const Tensor eps = noise(x_0);
    const Tensor x_t = q_sample(diffusion.schedule(), x_0, t, eps);
    const Prediction p = diffusion.p_mean_variance(model, x_t, t, {.clip = clip});
    const Tensor eps_theta = predict_eps_from_x0(diffusion.schedule(), x_t, t, p.x_0_hat);
    add_column(vlb, vlb_terms(diffusion, x_0, x_t, t, p));
    add_column(x_0_mse, mean_flat(square(p.x_0_hat - x_0)));
    add_column(eps_mse, mean_flat(square(eps_theta - eps)));
  }
  BitsPerDim bits;
  bits.prior = prior_bpd(diffusion, x_0);
  bits.vlb = concat(vlb);
  bits.x_0_mse = concat(x_0_mse);
  bits.eps_mse = concat(eps_mse);
  bits.total = sum(bits.vlb, {1}) + bits.prior;
  return bits;
}

namespace {

// What the network's mean half should have returned.
Tensor mean_target(const GaussianDiffusion& diffusion, const Tensor& x_0, const Tensor& x_t,
                   const Tensor& t, const Tensor& eps) {
  switch (diffusion.config().mean) {
    case ModelMean::kPreviousX:
      return q_posterior_mean(diffusion.schedule(), x_0, x_t, t);
    case ModelMean::kStartX:
      return x_0;
    case ModelMean::kEpsilon:
      break;
  }
  return eps;
}

}  // namespace

// Eq. 14: L_simple = E|eps - eps_theta|^2.
// Eq. 16: L_hybrid = L_simple + lambda L_vlb, where the variance is learned. A drawn term L_t
// stands for the bound as T L_t, so its weight is lambda T. Loss::kRescaledMse has lambda = 0.001,
// whatever T is; Loss::kMse has lambda = 1 / T.
TrainingLosses training_losses(const GaussianDiffusion& diffusion, const Model& model,
                               const Tensor& x_0, const Tensor& t, const Tensor& eps) {
  const SamplingOptions unclipped{.clip = false};
  const Loss kind = diffusion.config().loss;
  const auto T = static_cast<double>(diffusion.T());
  const Tensor x_t = q_sample(diffusion.schedule(), x_0, t, eps);
  const ModelOutput output = diffusion.call_model(model, x_t, t);
  TrainingLosses losses;
  if (kind == Loss::kKl || kind == Loss::kRescaledKl) {
    const Prediction p = diffusion.p_mean_variance(output, x_t, t, unclipped);
    const Tensor L_t = vlb_terms(diffusion, x_0, x_t, t, p);
    losses.loss = kind == Loss::kRescaledKl ? L_t * T : L_t;
    return losses;
  }
  losses.mse = mean_flat(square(mean_target(diffusion, x_0, x_t, t, eps) - output.mean));
  losses.loss = losses.mse;
  if (diffusion.learns_variance()) {
    // The bound teaches the variance alone: its gradient stops at the mean.
    const ModelOutput frozen{output.mean.detach(), output.variance};
    const Prediction p = diffusion.p_mean_variance(frozen, x_t, t, unclipped);
    const Tensor L_t = vlb_terms(diffusion, x_0, x_t, t, p);
    losses.vb = kind == Loss::kRescaledMse ? L_t * (0.001 * T) : L_t;
    losses.loss = losses.mse + losses.vb;
  }
  return losses;
}

}  // namespace mutilde
