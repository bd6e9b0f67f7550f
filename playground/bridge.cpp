#include "playground/bridge.h"

#include <algorithm>
#include <cmath>

#include "core/autograd.h"
#include "core/ops/ops.h"

namespace mutilde::playground {

namespace {

constexpr int64_t kT = 1000;

double max_abs_difference(const Tensor& a, const Tensor& b) { return max(abs(a - b)).item(); }

/// The root of the mean square of a - b, added up in one order on every machine.
double distance(const Tensor& a, const Tensor& b) {
  double squares = 0;
  const std::vector<double> differences = (a - b).to_vector<double>();
  for (double d : differences) squares += d * d;
  return std::sqrt(squares / static_cast<double>(differences.size()));
}

double at(const Tensor& table, int64_t t) { return table.values<double>()[static_cast<size_t>(t)]; }

std::vector<int64_t> timesteps_to_use(int steps) {
  return space_timesteps(kT, std::vector<int64_t>{steps});
}

GaussianDiffusion make_process(const Settings& settings, const std::string& schedule,
                               const std::vector<int64_t>& use_timesteps) {
  const std::vector<double> betas =
      respaced_betas(named_beta_schedule(schedule, kT), use_timesteps);
  const Schedule trained(named_beta_schedule(settings.noise_schedule, settings.diffusion_steps));
  const std::vector<int64_t> map =
      nearest_timesteps(trained, Schedule(betas).alpha_bar.to_vector<double>());
  return GaussianDiffusion(betas, make_diffusion(settings).config(), map, trained.T);
}

}  // namespace

RangeNumbers range_numbers(const Tensor& x) {
  constexpr double kHalfLevel = 1.0 / 255;
  RangeNumbers numbers;
  const std::vector<double> values = x.to_vector<double>();
  for (double value : values) {
    const double magnitude = std::abs(value);
    numbers.mean_abs += magnitude;
    numbers.max_abs = std::max(numbers.max_abs, magnitude);
    numbers.share_outside += magnitude > 1 + kHalfLevel ? 1 : 0;
  }
  numbers.mean_abs /= static_cast<double>(values.size());
  numbers.share_outside /= static_cast<double>(values.size());
  return numbers;
}

ForwardResult run_forward(const Tensor& x_0, const ForwardControls& controls) {
  if (controls.t < 0 || controls.t >= kT) {
    fail<Error>("run_forward: t is {}, 0 to {} expected", controls.t, kT - 1);
  }
  const NoGrad no_grad;
  const Schedule schedule(named_beta_schedule(controls.schedule, kT));
  const Tensor t = full_timesteps(controls.t, x_0);
  const auto seed = static_cast<uint64_t>(controls.seed);
  const Tensor eps = Generator(seed, 0).normal(x_0.shape());
  const Tensor eps_theta = eps + controls.error * Generator(seed, 1).normal(x_0.shape());

  ForwardResult result;
  result.x_t = q_sample(schedule, x_0, t, eps);
  result.x_0_hat = predict_x0_from_eps(schedule, result.x_t, t, eps_theta);
  const Tensor x_0_clipped = controls.clip ? clamp(result.x_0_hat, -1, 1) : result.x_0_hat;
  result.mu_tilde = q_posterior_mean(schedule, x_0_clipped, result.x_t, t);
  result.mu_theta = mean_from_eps(schedule, result.x_t, t, eps_theta);

  result.x_0_range = range_numbers(result.x_0_hat);
  result.alpha_bar_t = at(schedule.alpha_bar, controls.t);
  result.sqrt_recip_alpha_bar_minus_one_t = at(schedule.sqrt_recip_alpha_bar_minus_one, controls.t);
  result.mu_tilde_x_0_t = at(schedule.mu_tilde_x_0, controls.t);
  result.max_cut = max_abs_difference(result.x_0_hat, x_0_clipped);
  result.max_difference = max_abs_difference(result.mu_tilde, result.mu_theta);
  const Tensor right = q_posterior_mean(schedule, x_0, result.x_t, t);
  result.mu_tilde_error = distance(result.mu_tilde, right);
  result.mu_theta_error = distance(result.mu_theta, right);
  return result;
}

std::vector<int64_t> nearest_timesteps(const Schedule& trained,
                                       const std::vector<double>& alpha_bar) {
  const auto signal_to_noise = [](double a) { return std::log(a / (1 - a)); };
  // Falls with t.
  const std::vector<double> of_trained = trained.alpha_bar.to_vector<double>();
  std::vector<int64_t> nearest;
  for (double alpha_bar_t : alpha_bar) {
    const auto distance = [&](double other) {
      return std::abs(signal_to_noise(other) - signal_to_noise(alpha_bar_t));
    };
    const auto best =
        std::min_element(of_trained.begin(), of_trained.end(),
                         [&](double a, double b) { return distance(a) < distance(b); });
    nearest.push_back(best - of_trained.begin());
  }
  return nearest;
}

Sampling::Sampling(const LoadedModel& model, const SamplingControls& controls, DType dtype)
    : model_(model),
      controls_(controls),
      use_timesteps_(timesteps_to_use(controls.steps)),
      diffusion_(make_process(model.settings, controls.schedule, use_timesteps_)),
      t_(diffusion_.T() - 1) {
  if (controls.count < 1) fail<Error>("Sampling: {} images, at least 1 expected", controls.count);
  // The streams of `mutilde sample`: an image has its own, so the number of images does not matter.
  Settings seeded;
  seeded.seed = controls.seed;
  for (int64_t i = 0; i < controls.count; ++i) {
    generators_.push_back(random_for(seeded, RandomPurpose::kSamples, i));
  }
  const int64_t size = model.settings.image_size;
  x_t_ = Tensor::empty({controls.count, size, size, model.settings.image_channels}, dtype);
  x_t_ = noise();
  x_0_hat_ = Tensor::zeros(x_t_.shape(), dtype);
}

Tensor Sampling::noise() {
  const Tensor eps = Tensor::empty(x_t_.shape());
  for (size_t i = 0; i < generators_.size(); ++i) {
    const auto row = static_cast<int64_t>(i);
    eps.slice(row, row + 1).copy_(generators_[i].normal(x_t_.shape().with(0, 1)));
  }
  return eps.to(x_t_.dtype());
}

void Sampling::step() {
  if (done()) fail<Error>("Sampling::step: all {} steps are done", T());
  const NoGrad no_grad;
  const Model network = [&](const Tensor& x, const Tensor& t) {
    return model_.unet->forward(x, t);
  };
  SamplingOptions options;
  options.clip = controls_.clip;
  options.eta = controls_.ddim ? controls_.eta : 0;
  options.denoise = [&](const Tensor& x_0_hat) { return x_0_hat_ = x_0_hat; };
  const Tensor t = full_timesteps(t_, x_t_), eps = noise();
  x_t_ = (controls_.ddim ? diffusion_.ddim_sample(network, x_t_, t, eps, options)
                         : diffusion_.p_sample(network, x_t_, t, eps, options))
             .x;
  schedule_t_ = use_timesteps_[static_cast<size_t>(t_)];
  network_t_ = diffusion_.timestep_map()[static_cast<size_t>(t_)];
  alpha_bar_t_ = at(diffusion_.schedule().alpha_bar, t_);
  --t_;
}

}  // namespace mutilde::playground
