// # 9. Training: from a bound to a loop
//
// Tutorial 8 took a network that knows the noise for granted. Here one learns it in a few seconds.
// The paper has a bound of many terms to minimise (eq. 4 to 7), the code a squared error (eq. 14).
#include <cmath>
#include <numbers>

#include "core/ops/ops.h"
#include "diffusion/losses.h"
#include "diffusion/trainer.h"
#include "tutorials/small_model.h"
#include "tutorials/tutorial.h"

namespace mutilde::tutorial {
namespace {

// ## The bound: eq. 4 to 7
//
// We would like images to be likely: $-\log p_\theta(x_0)$ should be small. It is an integral over
// all ways to $x_0$, out of reach. But the forward process knows which ways matter. Multiply and
// divide by $q(x_{1:T} \mid x_0)$, and draw the logarithm into the mean (Jensen's inequality):
//
// $$-\log p_\theta(x_0) \le L_{\text{vlb}}
//   = \mathbb{E}_q \left[ \log \frac{q(x_{1:T} \mid x_0)}{p_\theta(x_{0:T})} \right]$$
//
// Both are products over the chain. By Bayes' rule $q(x_t \mid x_{t-1})$ is
// $q(x_{t-1} \mid x_t, x_0)\, q(x_t \mid x_0) / q(x_{t-1} \mid x_0)$, and of the fraction all
// cancels between neighbours but $q(x_T \mid x_0)$. What is left pairs each step back of the model
// with the true posterior's. The mean of the log of their ratio is a Kullback-Leibler divergence:
//
// $$L_{\text{vlb}} = \underbrace{D_{\text{KL}}(q(x_T \mid x_0) \,\Vert\, p(x_T))}_{L_T}
//   + \sum_{t>1} \underbrace{D_{\text{KL}}(q(x_{t-1} \mid x_t, x_0) \,\Vert\,
//   p_\theta(x_{t-1} \mid x_t))}_{L_{t-1}} + \underbrace{-\log p_\theta(x_0 \mid x_1)}_{L_0}$$
//
// These are eq. 7, 6 and 5. Is it true? One pixel, 50 steps, and a network that says
// $\epsilon_\theta = 0.7\, x_t$. We walk 20,000 chains and average the log of the ratio along them,
// and beside it the divergences. ($L_0$ is in both and left out; the last digit is chance.)
//
// ```text
// along the chains: 2.64 nats; by divergences: 2.63, of which L_T 0.0000
// ```
void bound_two_ways() {
  const GaussianDiffusion diffusion(linear_beta_schedule(50));
  const Schedule& schedule = diffusion.schedule();
  const Model model = [](const Tensor& x_t, const Tensor&) { return 0.7 * x_t; };
  const auto log_normal = [](const Tensor& x, const Tensor& mean, const Tensor& variance) {
    return -0.5 * (log(2 * std::numbers::pi * variance) + square(x - mean) / variance);
  };
  Generator random(1);
  const Tensor x_0 = Tensor::full({20000, 1}, 0.5, DType::kFloat64), zero = zeros_like(x_0);
  Tensor x_prev = x_0, log_ratio = zero, divergences = zero;
  for (int64_t step = 0; step < schedule.T; ++step) {
    const Tensor t = full_timesteps(step, x_0), beta_t = at_timestep(schedule.beta, t, x_0);
    const Tensor x_t = q_step(schedule, x_prev, t, normal_like(x_0, random));  // Eq. 2
    log_ratio = log_ratio + log_normal(x_t, sqrt(1.0 - beta_t) * x_prev, beta_t);
    if (step > 0) {
      const Prediction p = diffusion.p_mean_variance(model, x_t, t);  // Eq. 3
      log_ratio = log_ratio - log_normal(x_prev, p.mu_theta, p.variance);
      divergences = divergences + vlb_terms(diffusion, x_0, x_t, t, p).reshape(x_0.shape());
    }
    x_prev = x_t;
  }
  log_ratio = log_ratio - log_normal(x_prev, zero, zero + 1.0);
  const double L_T = mean(prior_bpd(diffusion, x_0)).item(), to_nats = std::numbers::ln2;
  fmt::print("along the chains: {:.2f} nats; by divergences: {:.2f}, of which L_T {:.4f}\n",
             mean(log_ratio).item(), to_nats * (mean(divergences).item() + L_T), to_nats * L_T);
}

// ## From the bound to eq. 14
//
// $L_T$ has no parameters, and it is next to nothing. In $L_{t-1}$ let the model's variance be the
// posterior's, $\tilde\beta_t$. The divergence is then the squared distance of the means over twice
// the variance, and by tutorial 8 both means are eq. 13, each with its noise:
//
// $$L_{t-1} = \frac{|\tilde\mu_t - \mu_\theta|^2}{2 \tilde\beta_t}
//   = w_t\, |\epsilon - \epsilon_\theta|^2,
//   \qquad w_t = \frac{\beta_t^2}{2 \tilde\beta_t\, \alpha_t (1 - \bar\alpha_t)}$$
//
// Eq. 14 is this with $w_t = 1$: $L_{\text{simple}} = \mathbb{E}\, |\epsilon - \epsilon_\theta|^2$
// with $t$ drawn evenly. The bound cares most for the first steps, where the noise is too small to
// see; eq. 14 gives the steps that make the picture their say.
//
// ```text
// L_{t-1} is w_t times the squared error from t = 1 on: yes
// w_t at t = 1: 0.5589, 10: 0.0712, 100: 0.0095, 500: 0.0031, 990: 0.1173
// ```
void weights(const GaussianDiffusion& diffusion, const Tensor& x_0) {
  const Schedule& schedule = diffusion.schedule();
  const auto w = [&](int64_t t) {
    return std::pow(at(schedule.beta, t), 2) / 2 / at(schedule.beta_tilde, t) /
           at(schedule.alpha, t) / at(schedule.one_minus_alpha_bar, t);
  };
  Generator random(2);
  double worst = 0;
  for (int64_t step = 1; step < schedule.T; ++step) {
    const Tensor t = full_timesteps(step, x_0), eps = normal_like(x_0, random);
    const Tensor x_t = q_sample(schedule, x_0, t, eps), eps_theta = normal_like(x_0, random);
    const Prediction p = diffusion.p_mean_variance({eps_theta, {}}, x_t, t, {.clip = false});
    const Tensor L = std::numbers::ln2 * vlb_terms(diffusion, x_0, x_t, t, p);
    const Tensor error = mean_flat(square(eps - eps_theta));  // both a pixel
    worst = std::max(worst, max(abs(L / (w(step) * error) - 1.0)).item());
  }
  fmt::print("L_{{t-1}} is w_t times the squared error from t = 1 on: {}\n",
             worst < 1e-9 ? "yes" : "no");
  fmt::print("w_t at t = 1: {:.4f}, 10: {:.4f}, 100: {:.4f}, 500: {:.4f}, 990: {:.4f}\n", w(1),
             w(10), w(100), w(500), w(990));
}

// ## One step
//
// Draw images, for each a $t$ and its noise; make $x_t$ by eq. 9; ask the network for the noise;
// eq. 14, backward, and one step of AdamW, which divides each gradient by its usual size, so that
// all weights move about as far, however steep the loss. That is all of training.
TrainingBatch draw(const Tensor& images, const Settings& settings, DType dtype, Generator& random) {
  const Tensor x_0 = random_images(images, settings.batch_size, random).to(dtype);
  const Tensor t = random.integers({x_0.size(0)}, settings.diffusion_steps);
  const Tensor eps = random.normal(x_0.shape(), dtype);
  return {x_0, t, eps, Tensor::full({x_0.size(0)}, 1), {}, {}};
}

Tensor losses(const UNet& unet, const Schedule& schedule, const TrainingBatch& batch) {
  const Tensor x_t = q_sample(schedule, batch.x_0, batch.t, batch.eps);  // Eq. 9
  return mean_flat(square(batch.eps - unet.forward(x_t, batch.t)));      // Eq. 14
}

Tensor train_step(const UNet& unet, AdamW& optimizer, const Schedule& schedule,
                  const TrainingBatch& batch, double lr) {
  const Tensor each = losses(unet, schedule, batch);
  mean(each).backward();
  optimizer.step(lr);
  optimizer.zero_grad();
  return each.detach();
}

// The library's `Trainer` does the same; besides, it checks, reports, and can be resumed:
//
// ```text
// three steps: losses agree with the Trainer's to 1e-5: yes
// ```
void same_as_trainer(const Tensor& images) {
  const Settings settings = small_settings();
  Trainer trainer(settings);
  Generator start = random_for(settings, RandomPurpose::kWeights, 0), random(3);
  const std::unique_ptr<UNet> unet = make_unet(settings, start);
  AdamW optimizer(unet->named_parameters(), {});
  double apart = 0;
  for (int step = 0; step < 3; ++step) {
    const TrainingBatch batch = draw(images, settings, DType::kFloat32, random);
    const Schedule& schedule = trainer.diffusion().schedule();
    const double loss = mean(train_step(*unet, optimizer, schedule, batch, settings.lr)).item();
    apart = std::max(apart, std::abs(loss - trainer.step_on(batch).loss));
  }
  fmt::print("three steps: losses agree with the Trainer's to 1e-5: {}\n",
             apart < 1e-5 ? "yes" : "no");
}

// ## A run
//
// Now 200 steps. The loss is that of 128 test images, with $t$ spread over the process and noise
// that stay the same, by quarter of the process. A new network says 0: a loss of 1.
//
// ```text
//               t<250   t<500   t<750  t<1000    mean
// step 0       0.995   0.992   1.035   0.996   1.005
// step 40      0.465   0.169   0.080   0.033   0.187
// step 160     0.371   0.126   0.057   0.019   0.143
// ```
//
// In the last quarter $x_t$ is nearly all noise, and to repeat it is nearly right: that is learned
// first and best. In the first the noise is faint, and to find it takes knowing the image to its
// last wrinkle. So compare a quarter with itself; and a batch's mean jumps with the $t$ it drew.
//
// ![The loss of each quarter's share of the batch, smoothed](09_loss.png)
//
// ## The average of the weights
//
// Each step pulls the weights towards what its 16 images want, so they never come to rest. A moving
// average does, $\bar\theta \leftarrow r\, \bar\theta + (1 - r)\, \theta$, and samples are made
// with it. With $r = 0.98$ it reaches back about $1 / (1 - r) = 50$ steps. (Long runs take 0.9999.)
//
// ```text
// weights      0.356   0.119   0.054   0.018   0.137
// average      0.352   0.118   0.053   0.017   0.135
// ```
//
// ![Samples by the weights and by their average, from the same noise](09_samples.png)
void report(const std::string& when, const UNet& unet, const Schedule& schedule, const Tensor& x) {
  const NoGrad no_grad;
  const int64_t N = x.size(0), quarter = N / 4;
  const Tensor t = 1.0 * schedule.T / N * Tensor::arange(N).to(DType::kFloat64);
  const Tensor eps = Generator(4).normal(x.shape(), DType::kFloat64);
  const Tensor each = losses(unet, schedule, {x, t.to(DType::kInt64), eps, {}, {}, {}});
  fmt::print("{:10}", when);
  for (int64_t q = 0; q < 4; ++q)
    fmt::print("{:8.3f}", mean(each.slice(q * quarter, (q + 1) * quarter)).item());
  fmt::print("{:8.3f}\n", mean(each).item());
}

void run(const Schedule& schedule, const Tensor& train, const Tensor& test,
         const Options& options) {
  const Settings settings = small_settings();
  Generator start(5), random(6);
  const std::unique_ptr<UNet> unet = small_unet(settings, start);
  AdamW optimizer(unet->named_parameters(), {.ema_rates = {0.98}});
  std::vector<app::Curve> curves = {{"t < 250", {210, 80, 20}, 2.5, {}, {}},
                                    {"t < 500", {200, 150, 0}, 2.5, {}, {}},
                                    {"t < 750", {0, 140, 60}, 2.5, {}, {}},
                                    {"t < 1000", {0, 90, 160}, 2.5, {}, {}}};
  fmt::print("              t<250   t<500   t<750  t<1000    mean\n");
  const int64_t steps = options.full ? 3000 : 200;
  for (int64_t step = 0; step < steps; ++step) {
    if (step % (steps / 5) == 0) report(fmt::format("step {}", step), *unet, schedule, test);
    const TrainingBatch batch = draw(train, settings, DType::kFloat64, random);
    const Tensor each = train_step(*unet, optimizer, schedule, batch, settings.lr);
    for (int64_t i = 0; i < each.numel(); ++i) {
      app::Curve& c = curves[static_cast<size_t>(4 * batch.t.data<int64_t>()[i] / schedule.T)];
      c.x.push_back(static_cast<double>(step));
      c.y.push_back(each.data<double>()[i]);
    }
  }
  for (app::Curve& c : curves) c.y = app::smoothed(c.y, 0.1);
  save(options, "09_loss.png", app::draw_plot("loss", "step", curves));

  std::vector<Row> rows;
  const auto look = [&](const char* label) {
    report(label, *unet, schedule, test);
    const SpacedDiffusion fewer = make_diffusion(settings, "50");
    Generator noise(7);
    const Tensor x_T = noise.normal({10, kSmallSize, kSmallSize, 1}, DType::kFloat64);
    rows.push_back({label, fewer.p_sample_loop(model_of(*unet), x_T, noise_from(noise))});
  };
  look("weights");
  const SwappedParameters swapped(optimizer.parameters(), optimizer.ema(0));
  look("average");
  save(options, "09_samples.png", labelled_rows({}, rows, 6));
}

}  // namespace

void tutorial_main(const Options& options) {
  const GaussianDiffusion diffusion(cosine_beta_schedule(1000),
                                    {.variance = ModelVariance::kFixedSmall});
  const Tensor train = images(4096, kSmallSize, /*test=*/false), test = images(128, kSmallSize);
  bound_two_ways();
  weights(diffusion, test.slice(0, 4));
  same_as_trainer(train);
  run(diffusion.schedule(), train, test, options);
}

}  // namespace mutilde::tutorial
