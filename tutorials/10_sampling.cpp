// # 10. Sampling: from noise to a picture
//
// A network that has learned to name the noise (tutorial 9) makes pictures in several ways. We walk
// the chain back step by step (DDPM), take fewer and longer steps (eq. 19), take the chance out of
// them (DDIM), and at last go in both directions, from a picture to its noise and back.
#include <cmath>

#include "core/ops/ops.h"
#include "diffusion/respace.h"
#include "tutorials/small_model.h"
#include "tutorials/tutorial.h"

namespace mutilde::tutorial {
namespace {

double distance(const Tensor& a, const Tensor& b) {  // root of the mean squared difference
  return std::sqrt(mean_squared_error(a, b).item());
}

SpacedDiffusion process(const std::string& steps,  // so many of a thousand
                        ModelVariance variance = ModelVariance::kFixedSmall) {
  return SpacedDiffusion(cosine_beta_schedule(1000), space_timesteps(1000, steps),
                         {.mean = ModelMean::kStartX, .variance = variance});
}

// ## The chain back: eq. 3
//
// By Bayes' rule, the logarithm of $q(x_{t-1} \mid x_t)$ is that of $q(x_t \mid x_{t-1})$ plus that
// of $q(x_{t-1})$. The first is a parabola in $x_{t-1}$ of width $\sqrt{\beta_t}$ (eq. 2); over so
// short a way the second is nearly a straight line. Parabola and line make a parabola: a small step
// back is nearly normal. So eq. 3 lets it be, $\mathcal{N}(\mu_\theta(x_t, t), \Sigma_\theta(x_t,
// t))$, and to learn are mean and variance. That is DDPM:
//
// Start from noise, $x_T \sim \mathcal{N}(0, \mathbf{I})$. In each step the network is asked for
// the image in $x_t$, $\hat x_0$; clipped to the range of pixels
// ([what for?](../docs/clipping.md)) it goes into eq. 11, which gives the mean of $x_{t-1}$; and to
// that comes fresh noise of the posterior's variance, eq. 10:
//
// $$x_{t-1} = \tilde\mu_t(x_t, \hat x_0) + \sqrt{\tilde\beta_t}\; z,
//   \qquad z \sim \mathcal{N}(0, \mathbf{I})$$
//
// What should a network name? By eq. 9, the noise gives the image and the image the noise. But an
// error of the noise arrives in the image multiplied by $\sqrt{1/\bar\alpha_t - 1}$, at first by
// 20,000, and one of the image in the noise by the inverse. Networks that are trained for days name
// the noise (tutorial 9). Ours, trained for seconds, takes a mixture (Salimans and Ho 2022):
//
// $$v = \sqrt{\bar\alpha_t}\, \epsilon - \sqrt{1 - \bar\alpha_t}\, x_0, \qquad
//   \hat x_0 = \sqrt{\bar\alpha_t}\, x_t - \sqrt{1 - \bar\alpha_t}\, v_\theta$$
//
// ```text
// 50 steps by hand and p_sample_loop agree to 1e-12: yes
// ```
//
// ![Above, the state at some steps; below, what the network takes the picture to be](10_chain.png)
//
// Below, $\hat x_0$ is a picture from the beginning: at first the mean of all that it could become,
// and the later, the more decided. (It will not win a prize. With `--full` the network is trained
// for fifteen times as long.)
void chain(const VNetwork& network, const Tensor& x_T, const Options& options) {
  const SpacedDiffusion diffusion = process("50");
  const Schedule& s = diffusion.schedule();
  Generator random(2), again(2);
  std::vector<std::string> labels;
  std::vector<Tensor> states, guesses;
  Tensor x = x_T;
  for (int64_t t = s.T - 1; t >= 0; --t) {
    const int64_t number = diffusion.timestep_map()[static_cast<size_t>(t)];  // among the thousand
    const Tensor x_0_hat = clamp(network.x_0_hat(x, full_timesteps(number, x)), -1, 1);
    const Tensor mu = at(s.mu_tilde_x_0, t) * x_0_hat + at(s.mu_tilde_x_t, t) * x;  // Eq. 11
    if ((s.T - 1 - t) % 6 == 0) {
      labels.push_back(fmt::format("t={}", number));
      states.push_back(x.slice(0, 1));
      guesses.push_back(x_0_hat.slice(0, 1));
    }
    x = mu + std::sqrt(at(s.beta_tilde, t)) * normal_like(x, random);
  }
  const Tensor library = diffusion.p_sample_loop(network.model(), x_T, noise_from(again));
  fmt::print("50 steps by hand and p_sample_loop agree to 1e-12: {}\n",
             max(abs(x - library)).item() < 1e-12 ? "yes" : "no");
  const auto side_by_side = [](const std::vector<Tensor>& images) {
    return permute(concat(images), {3, 1, 2, 0});  // they were joined along the channels
  };
  save(options, "10_chain.png",
       labelled_rows(labels, {{"x_t", side_by_side(states)}, {"x_0_hat", side_by_side(guesses)}},
                     5));
}

// ## Fewer steps: eq. 19
//
// The network was trained for a thousand steps, above are fifty. Why may that be? Training took one
// $t$ at a time and $x_t$ from eq. 8, in which only $\bar\alpha_t$ occurs. So keep some steps,
// $S_1 < S_2 < \ldots$, let $\bar\alpha$ at each stay what it was, and the network is at home in
// all. From $\bar\alpha_{S_t} = (1 - \beta_{S_t})\, \bar\alpha_{S_{t-1}}$ follows eq. 19:
//
// $$\beta_{S_t} = 1 - \frac{\bar\alpha_{S_t}}{\bar\alpha_{S_{t-1}}}, \qquad
//   \tilde\beta_{S_t} = \frac{1 - \bar\alpha_{S_{t-1}}}{1 - \bar\alpha_{S_t}}\, \beta_{S_t}$$
//
// What does it cost? Let a pixel be $x_0 \sim \mathcal{N}(0, 0.3^2)$. Then the perfect network is
// known: of $x_t$, the share $0.09\, \bar\alpha_t / (0.09\, \bar\alpha_t + 1 - \bar\alpha_t)$ is
// expected to be image. Whatever is wrong with 10,000 of its samples, whose standard deviation
// should be 0.300, is due to the steps alone:
//
// ```text
// steps   DDPM, variance beta   DDPM, beta_tilde   DDIM
//   250                 0.304              0.291  0.298
//   100                 0.303              0.286  0.294
//    50                 0.314              0.272  0.287
//    25                 0.323              0.253  0.274
//    10                 0.365              0.208  0.234
//     5                 0.463              0.151  0.165
// ```
//
// With $\beta_t$ a step adds too much, with $\tilde\beta_t$ too little: the truth is between them
// (tutorial 11), and the longer the step, the further they are apart. So few steps make samples too
// noisy or too smooth. DDIM, which comes next, adds nothing, and is wrong in another way.
void cost_of_fewer_steps() {
  fmt::print("steps   DDPM, variance beta   DDPM, beta_tilde   DDIM\n");
  const Schedule all(cosine_beta_schedule(1000));
  const Model perfect = [&](const Tensor& x_t, const Tensor& t) {
    const Tensor alpha_bar_t = at_timestep(all.alpha_bar, t, x_t);
    return 0.09 * sqrt(alpha_bar_t) / (0.09 * alpha_bar_t + (1.0 - alpha_bar_t)) * x_t;
  };
  Generator start(3), random(4);
  const Tensor x_T = start.normal({10000, 1}, DType::kFloat64);
  const auto deviation = [](const Tensor& x) { return std::sqrt(mean(square(x)).item()); };
  for (const char* steps : {"250", "100", "50", "25", "10", "5"}) {
    const GaussianDiffusion large = process(steps, ModelVariance::kFixedLarge);
    const GaussianDiffusion small = process(steps);
    const SamplingOptions unclipped{.clip = false};
    // One after the other: the noise comes from one sequence.
    const Tensor ddpm_large = large.p_sample_loop(perfect, x_T, noise_from(random), unclipped);
    const Tensor ddpm_small = small.p_sample_loop(perfect, x_T, noise_from(random), unclipped);
    const Tensor ddim = small.ddim_sample_loop(perfect, x_T, noise_from(random), unclipped);
    fmt::print("{:>5} {:21.3f} {:18.3f} {:6.3f}\n", steps, deviation(ddpm_large),
               deviation(ddpm_small), deviation(ddim));
  }
}

// ## Without chance: eq. DDIM 12
//
// Eq. 9 at $t - 1$ says: image, plus noise of variance $1 - \bar\alpha_{t-1}$. It does not say
// whose noise. We can take what is there already, $\epsilon_\theta$, or fresh noise $z$, or some of
// each; if the variances add up, $x_{t-1}$ is as the network expects it. That is eq. DDIM 12:
//
// $$x_{t-1} = \sqrt{\bar\alpha_{t-1}}\, \hat x_0
//   + \sqrt{1 - \bar\alpha_{t-1} - \sigma_t^2}\; \epsilon_\theta + \sigma_t\, z,
//   \qquad \sigma_t = \eta \sqrt{\tilde\beta_t}$$
//
// (Where $\hat x_0$ was clipped, $\epsilon_\theta$ is what eq. 9 makes of the clipped image.)
//
// With $\eta = 1$ it is DDPM, for by eq. 10
//
// $$\sqrt{1 - \bar\alpha_{t-1} - \tilde\beta_t}\; \epsilon_\theta
//   = \frac{\sqrt{\alpha_t}\, (1 - \bar\alpha_{t-1})}{\sqrt{1 - \bar\alpha_t}} \cdot
//   \frac{x_t - \sqrt{\bar\alpha_t}\, \hat x_0}{\sqrt{1 - \bar\alpha_t}},$$
//
// in which $x_t$ has eq. 11's factor. With $\eta = 0$ nothing is drawn: a picture is a function of
// $x_T$ alone, and much the same in many steps or in few.
//
// ```text
// with eta = 1 a step is DDPM's to 1e-9: yes
// 50 steps: DDPM is 0.63 from DDIM in 100 steps, DDIM 0.01
// 25 steps: DDPM is 0.66 from DDIM in 100 steps, DDIM 0.02
// 10 steps: DDPM is 0.59 from DDIM in 100 steps, DDIM 0.06
// ```
//
// ![DDPM and DDIM from the same noise, in more and fewer steps](10_steps.png)
void without_chance(const VNetwork& network, const Tensor& x_T, const Options& options) {
  const GaussianDiffusion all = process("1000");
  Generator random(5);
  const Model any = [](const Tensor& x_t, const Tensor&) { return 0.9 * x_t; };
  double worst = 0;
  for (int64_t step = 0; step < all.T(); ++step) {
    const Tensor t = full_timesteps(step, x_T), z = normal_like(x_T, random);
    const Tensor x_t = normal_like(x_T, random);
    const Tensor ddim = all.ddim_sample(any, x_t, t, z, {.eta = 1}).x;
    worst = std::max(worst, max(abs(ddim - all.p_sample(any, x_t, t, z).x)).item());
  }
  fmt::print("with eta = 1 a step is DDPM's to 1e-9: {}\n", worst < 1e-9 ? "yes" : "no");

  const auto ddim = [&](const std::string& steps) {
    return process(steps).ddim_sample_loop(network.model(), x_T, noise_from(random));
  };
  std::vector<Row> rows;
  const Tensor best = ddim("100");
  for (const std::string steps : {"50", "25", "10"}) {
    rows.push_back(
        {"DDPM, " + steps, process(steps).p_sample_loop(network.model(), x_T, noise_from(random))});
    rows.push_back({"DDIM, " + steps, ddim(steps)});
    fmt::print("{} steps: DDPM is {:.2f} from DDIM in 100 steps, DDIM {:.2f}\n", steps,
               distance(rows.rbegin()[1].images, best), distance(rows.rbegin()[0].images, best));
  }
  save(options, "10_steps.png", labelled_rows({}, rows, 4));
}

// ## Back to the noise
//
// With $\sigma_t = 0$, divide DDIM's equation by $\sqrt{\bar\alpha_{t-1}}$ and write
// $\bar x = x / \sqrt{\bar\alpha}$ and $s = \sqrt{1/\bar\alpha - 1}$, noise against image:
//
// $$\bar x_{t-1} = \bar x_t + (s_{t-1} - s_t)\, \epsilon_\theta(x_t, t)$$
//
// This is Euler's method for $d\bar x / ds = \epsilon_\theta$, a differential equation, and that
// can be followed either way. `ddim_reverse_sample` steps from $x_t$ to $x_{t+1}$. All steps but
// the last (which would end in noise alone) find the state that DDIM makes a given picture from:
// its code. Decoded, it gives the picture back, almost: each way takes the slope at the beginning
// of a step, and the ends of a step have different ones. In half the step the error is half:
//
// ```text
//  25 steps: code of size 0.9, decoded 0.054 from the image
//  50 steps: code of size 0.9, decoded 0.028 from the image
// 100 steps: code of size 0.9, decoded 0.014 from the image
// ```
//
// ![Test images, their codes, and the codes decoded](10_codes.png)
void back_to_the_noise(const VNetwork& network, const Tensor& x_0, const Options& options) {
  std::vector<Row> rows{{"image", x_0}};
  Generator random(6);
  for (const char* steps : {"10", "25", "50", "100"}) {
    const GaussianDiffusion diffusion = process(steps);
    Tensor code = x_0;
    for (int64_t t = 0; t + 1 < diffusion.T(); ++t) {
      const Tensor at_t = full_timesteps(t, code);
      code = diffusion.ddim_reverse_sample(network.model(), code, at_t, {.clip = false}).x;
    }
    const Tensor decoded =
        diffusion.ddim_sample_loop(network.model(), code, noise_from(random), {.clip = false});
    fmt::print("{:>3} steps: code of size {:.1f}, decoded {:.3f} from the image\n", steps,
               std::sqrt(mean(square(code)).item()), distance(decoded, x_0));
    rows.push_back({fmt::format("code, {}", steps), 0.4 * code});
    rows.push_back({"decoded", decoded});
  }
  save(options, "10_codes.png", labelled_rows({}, rows, 4));
}

}  // namespace

void tutorial_main(const Options& options) {
  Generator random(1), start(7);
  const VNetwork network(small_settings(), random);
  network.train(options.full ? 3000 : 200);
  const NoGrad no_grad;
  const Tensor x_T = start.normal({8, kSmallSize, kSmallSize, 1}, DType::kFloat64);
  chain(network, x_T, options);
  cost_of_fewer_steps();
  without_chance(network, x_T, options);
  back_to_the_noise(network, images(6, kSmallSize), options);
}

}  // namespace mutilde::tutorial
