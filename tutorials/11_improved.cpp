// # 11. Improved DDPM: the variance of a step, and likelihood in bits
//
// Eq. 14 trains the mean of a step back and leaves its variance to the programmer. For the look of
// a picture it hardly matters; for the likelihood, how few bits an image can be stored in, it does.
// We find the true variance, let the network learn it (eq. 15, 16), count bits, and train on the
// bound itself (eq. 18).
#include <cmath>
#include <numeric>

#include "core/ops/ops.h"
#include "data/codec.h"
#include "data/image_io.h"
#include "diffusion/losses.h"
#include "diffusion/timestep_sampler.h"
#include "tutorials/small_model.h"
#include "tutorials/tutorial.h"

namespace mutilde::tutorial {
namespace {

// ## The true variance
//
// Given $x_t$ *and* $x_0$, the step back is normal with mean $\tilde\mu_t = a\, x_0 + b\, x_t$ (eq.
// 11) and variance $\tilde\beta_t$. Without $x_0$, its own uncertainty comes on top, by the law of
// total variance (the mean of the variance plus the variance of the mean):
//
// $$\mathrm{Var}(x_{t-1} \mid x_t) = \tilde\beta_t + a^2\, \mathrm{Var}(x_0 \mid x_t), \qquad
//   a = \frac{\sqrt{\bar\alpha_{t-1}}\, \beta_t}{1 - \bar\alpha_t}$$
//
// If the image is certain, that is $\tilde\beta_t$. If nothing is known of it but
// $x_0 \sim \mathcal{N}(0, 1)$, then $\mathrm{Var}(x_0 \mid x_t) = 1 - \bar\alpha_t$, and the sum
// is $\beta_t$: put it in. Real images are in between. Take pixels of standard deviation 0.3, for
// which both sides can be computed: $x_{t-1}$ has the variance
// $V = 0.09\, \bar\alpha_{t-1} + 1 - \bar\alpha_{t-1}$, and
// $x_t = \sqrt{\alpha_t}\, x_{t-1} + \sqrt{\beta_t}\, z$ leaves
// $V \beta_t / (\alpha_t V + \beta_t)$ of it.
//
// ## Eq. 15
//
// So let the network say where between the two, on a logarithmic scale, as variances are factors:
//
// $$\Sigma_\theta = \exp \left( v \log \beta_t + (1 - v) \log \tilde\beta_t \right)$$
//
// with a $v$ for each pixel, from an output channel of its own, scaled so that 1 means $\beta_t$
// and $-1$ means $\tilde\beta_t$. Below is the $v$ that would be right for our pixels:
//
// ```text
//    t   beta_tilde / beta   true / beta   right v
//    1              0.4039        0.9962      1.00
//    5              0.7430        0.9916      0.97
//   20              0.9138        0.9797      0.77
//  100              0.9848        0.9873      0.16
//  199              0.9999        0.9999      0.09
// both sides agree to 1e-9 at every t: yes
// given v, the library's variance is the true one: yes
// ```
//
// The two ends differ in the first steps alone. There such pixels want $\beta_t$; real ones, of
// which neighbours tell much, something in between. And there most of the bits are:
void true_variance(const GaussianDiffusion& diffusion) {
  const Schedule& s = diffusion.schedule();
  double worst = 0, worst_of_library = 0;
  fmt::print("   t   beta_tilde / beta   true / beta   right v\n");
  for (int64_t t = 1; t < s.T; ++t) {
    const double alpha_bar_t = at(s.alpha_bar, t), beta_t = at(s.beta, t);
    const double beta_tilde_t = at(s.beta_tilde, t), a = at(s.mu_tilde_x_0, t);
    const double of_x_0 = 0.09 * (1 - alpha_bar_t) / (0.09 * alpha_bar_t + 1 - alpha_bar_t);
    const double by_parts = beta_tilde_t + a * a * of_x_0;
    const double V = 0.09 * at(s.alpha_bar_prev, t) + 1 - at(s.alpha_bar_prev, t);
    const double direct = V * beta_t / (at(s.alpha, t) * V + beta_t);
    worst = std::max(worst, std::abs(by_parts / direct - 1));
    const double v = std::log(direct / beta_tilde_t) / std::log(beta_t / beta_tilde_t);
    const Tensor output = Tensor::full({1, 1}, 2 * v - 1, DType::kFloat64);
    const Prediction p =
        diffusion.p_mean_variance({output, output}, output, full_timesteps(t, output));
    worst_of_library = std::max(worst_of_library, std::abs(p.variance.item() / direct - 1));
    if (t == 1 || t == 5 || t == 20 || t == 100 || t == 199)
      fmt::print("{:4} {:19.4f} {:13.4f} {:9.2f}\n", t, beta_tilde_t / beta_t, direct / beta_t, v);
  }
  fmt::print("both sides agree to 1e-9 at every t: {}\n", worst < 1e-9 ? "yes" : "no");
  fmt::print("given v, the library's variance is the true one: {}\n",
             worst_of_library < 1e-9 ? "yes" : "no");
}

// ## Eq. 16
//
// Eq. 14 has no variance in it, so it cannot teach one. The bound can (tutorial 9). As a function
// of $\sigma^2$, the divergence $L_{t-1}$ is
//
// $$\frac12 \left( \log \frac{\sigma^2}{\tilde\beta_t} - 1
//   + \frac{\tilde\beta_t + |\tilde\mu_t - \mu_\theta|^2}{\sigma^2} \right)$$
//
// whose slope is zero at $\sigma^2 = \tilde\beta_t + |\tilde\mu_t - \mu_\theta|^2$. On average that
// is the true variance, if the network is perfect, and more by its error if not: as it should be.
// So a little of the bound is added to the loss:
//
// $$L_{\text{hybrid}} = L_{\text{simple}} + \lambda\, L_{\text{vlb}}, \qquad \lambda = 0.001$$
//
// Through $\mu_\theta$ the bound must not pull, or its weights (tutorial 9) would spoil the mean.
// In the code the mean is detached there, and the gradients show it:
//
// ```text
// gradient of L_vlb: 0 in the mean's channel; in the variance's, not 0: yes
// gradient of L_simple: 0 in the variance's channel; in the mean's, not 0: yes
// ```
void who_teaches_whom(const GaussianDiffusion& diffusion, const Tensor& x_0) {
  Generator random(1);
  const Tensor t = random.integers({x_0.size(0)}, diffusion.T()), eps = normal_like(x_0, random);
  const Shape two_channels = x_0.shape().with(-1, 2);
  for (bool bound : {true, false}) {
    Tensor output = random.normal(two_channels, DType::kFloat64).set_requires_grad(true);
    const Model model = [&](const Tensor&, const Tensor&) { return output; };
    const TrainingLosses losses = training_losses(diffusion, model, x_0, t, eps);
    sum(bound ? losses.vb : losses.mse).backward();
    const double of_mean = max(abs(slice_channels(output.grad(), 0, 1))).item();
    const double of_variance = max(abs(slice_channels(output.grad(), 1, 2))).item();
    fmt::print("gradient of {}: {} in the {}'s channel; in the {}'s, not 0: {}\n",
               bound ? "L_vlb" : "L_simple", bound ? of_mean : of_variance,
               bound ? "mean" : "variance", bound ? "variance" : "mean",
               (bound ? of_variance : of_mean) > 0 ? "yes" : "no");
  }
}

// ## Bits per dimension
//
// An event of probability $p$ can be stored in $-\log_2 p$ bits, so the bound of tutorial 9, in
// bits and divided by the number of pixel values, says how many bits a value takes at most. If it
// could be any of 256, it takes 8. Pixels are whole numbers, so in $L_0$ the normal density becomes
// the probability of a bin 2/255 wide.
//
// We train a small network on a process of 200 steps with eq. 16, and compute the bound for 10 test
// images, term by term. Each term three times, with the same mean: with $\beta_t$, with
// $\tilde\beta_t$, and with the variance that was learned.
//
// ```text
// variance        L_0   L_1 to L_9   the rest   total
// beta          2.256        1.535      0.947   4.738
// beta_tilde    2.256        1.754      0.908   4.918
// learned       2.176        1.405      0.902   4.483
// bits_per_dim says 4.483 for the last
// a PNG file of the same images: 5.79 bits a pixel
// ```
//
// ![The first terms of the bound, in bits per dimension](11_terms.png)
//
// Four fifths of the bits are in the first ten steps. There the learned variance saves a quarter of
// a bit against $\beta_t$, and nearly half of one against $\tilde\beta_t$.
Tensor bits(const UNet& unet, const GaussianDiffusion& learned, const Tensor& x_0,
            const Options& options) {
  const std::vector<double> betas = cosine_beta_schedule(learned.T());
  const std::vector<std::pair<std::string, GaussianDiffusion>> processes = {
      {"beta", GaussianDiffusion(betas, {.variance = ModelVariance::kFixedLarge})},
      {"beta_tilde", GaussianDiffusion(betas, {.variance = ModelVariance::kFixedSmall})},
      {"learned", learned}};
  Generator random(2), again(2);
  std::vector<std::vector<double>> terms(3);
  for (int64_t step = learned.T() - 1; step >= 0; --step) {
    const Tensor t = full_timesteps(step, x_0);
    const Tensor x_t = q_sample(learned.schedule(), x_0, t, normal_like(x_0, random));  // Eq. 9
    const ModelOutput output = learned.call_model(model_of(unet), x_t, t);
    for (size_t i = 0; i < 3; ++i) {
      const Prediction p = processes[i].second.p_mean_variance(output, x_t, t);
      terms[i].push_back(mean(vlb_terms(learned, x_0, x_t, t, p)).item());  // Eq. 5 and 6
    }
  }
  const double L_T = mean(prior_bpd(learned, x_0)).item();
  fmt::print("variance        L_0   L_1 to L_9   the rest   total\n");
  std::vector<app::Curve> curves;
  const std::array<std::array<uint8_t, 3>, 3> colours{{{210, 80, 20}, {0, 90, 160}, {0, 140, 60}}};
  for (size_t i = 0; i < 3; ++i) {
    const auto part = [&](size_t from, size_t to) {  // t falls along the terms
      return std::accumulate(terms[i].end() - to, terms[i].end() - from, 0.0);
    };
    const size_t T = terms[i].size();
    fmt::print("{:10} {:8.3f} {:12.3f} {:10.3f} {:7.3f}\n", processes[i].first, part(0, 1),
               part(1, 10), part(10, T) + L_T, part(0, T) + L_T);
    curves.push_back(curve(processes[i].first, colours[i], /*T=*/20,
                           [&](int64_t t) { return terms[i].rbegin()[t]; }));
  }
  const BitsPerDim library = bits_per_dim(learned, model_of(unet), x_0, noise_from(again));
  fmt::print("bits_per_dim says {:.3f} for the last\n", mean(library.total).item());
  const auto png = static_cast<double>(encode_png(image_grid(x_0, 0, /*padding=*/0)).size());
  fmt::print("a PNG file of the same images: {:.2f} bits a pixel\n", 8 * png / x_0.numel());
  save(options, "11_terms.png",
       app::draw_plot("L_t, bits per dimension", "t, of the first steps", curves));
  return library.vlb;
}

// ## Eq. 18: training on the bound itself
//
// Why not minimise $L_{\text{vlb}}$ alone? A step of training sees one term an image, drawn with
// probability $p_t$ and weighted by $1 / p_t$, so that the mean is right. But terms differ by
// factors of thousands: drawn evenly, the estimate is mostly far too small and sometimes far too
// large. Its variance is $\sum_t \mathbb{E}[L_t^2] / p_t$ less a constant. For the least under
// $\sum_t p_t = 1$, set the derivative $-\mathbb{E}[L_t^2] / p_t^2 + \lambda$ to zero:
//
// $$p_t \propto \sqrt{\mathbb{E}[L_t^2]}$$
//
// What a term is worth is not known in advance, and changes. `LossSecondMomentSampler` keeps the
// last 10 losses of each $t$ and draws evenly until it has them; a thousandth of evenness stays, so
// that no $t$ is forgotten. With the 10 images' terms from above:
//
// ```text
// one term, drawn evenly, says 4.48 +- 32; by eq. 18, 4.48 +- 1.2
// p at t = 0: 0.476, 1: 0.0994, 10: 0.0115, 100: 0.0004
// ```
//
// ![The probability of each t](11_probabilities.png)
void importance(const Tensor& vlb, const Options& options) {
  const int64_t N = vlb.size(0), T = vlb.size(1);
  const Tensor falling = (T - 1.0 - Tensor::arange(T).to(DType::kFloat64)).to(DType::kInt64);
  LossSecondMomentSampler sampler(T, N);
  for (int64_t n = 0; n < N; ++n)
    sampler.update_with_losses(falling, vlb.slice(n, n + 1).reshape({T}));
  const std::vector<double> p = sampler.probabilities();
  const double mean = sum(vlb).item() / N;
  const auto deviation = [&](const std::vector<double>& probability) {  // from one draw
    const Tensor along = Tensor::from<double>({T}, {probability.rbegin(), probability.rend()});
    return std::sqrt(sum(square(vlb) / along).item() / N - mean * mean);
  };
  fmt::print("one term, drawn evenly, says {:.2f} +- {:.0f}; by eq. 18, {:.2f} +- {:.1f}\n", mean,
             deviation(UniformSampler(T).probabilities()), mean, deviation(p));
  fmt::print("p at t = 0: {:.3f}, 1: {:.4f}, 10: {:.4f}, 100: {:.4f}\n", p[0], p[1], p[10], p[100]);
  save(options, "11_probabilities.png",
       app::draw_plot("probability of t", "t", {curve("eq. 18", {0, 90, 160}, T, [&p](int64_t t) {
                        return p[static_cast<size_t>(t)];
                      })}));
}

}  // namespace

void tutorial_main(const Options& options) {
  Settings settings = small_settings();
  settings.diffusion_steps = 200;
  settings.learn_sigma = true;
  const SpacedDiffusion diffusion = make_diffusion(settings);
  const Tensor test = images(10, kSmallSize);
  true_variance(diffusion);
  who_teaches_whom(diffusion, test);
  Generator random(3);
  const std::unique_ptr<UNet> unet = small_unet(settings, random);
  const auto hybrid = [&](const Tensor& x_0, const Tensor& t, const Tensor& eps) {  // Eq. 16
    return training_losses(diffusion, model_of(*unet), x_0, t, eps).loss;
  };
  train_small(*unet, hybrid, diffusion.T(), options.full ? 3000 : 200);
  const NoGrad no_grad;
  importance(bits(*unet, diffusion, test, options), options);
}

}  // namespace mutilde::tutorial
