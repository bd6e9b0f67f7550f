// # 7. The forward process: how an image dissolves
//
// Diffusion begins with something easy: ruining an image. Noise is added in many small steps, until
// nothing but noise is left. Later a network learns to undo one step at a time. This page is about
// the easy half, which needs no network, and about the one choice in it: how much noise, and when.
//
// The steps form a chain: each looks at the step before it and at nothing else. That is eq. 1,
//
// $$q(x_1, \ldots, x_T \mid x_0) = \prod_{t=1}^{T} q(x_t \mid x_{t-1})$$
//
// (The paper counts $t$ from 1 to $T$, code from 0 to $T - 1$. We print the code's.)
#include <cmath>

#include "core/ops/ops.h"
#include "diffusion/gaussian_diffusion.h"
#include "tutorials/tutorial.h"

namespace mutilde::tutorial {
namespace {

// ## One step: eq. 2
//
// $$q(x_t \mid x_{t-1}) = \mathcal{N}\left(x_t; \sqrt{1 - \beta_t}\, x_{t-1},\, \beta_t \mathbf{I}
//   \right)$$
//
// In words: shrink the image a little, and add a little noise of variance $\beta_t$. Why shrink it?
// A sum of independent things has the sum of their variances. If $x_{t-1}$ has variance 1, then
// $x_t$ has $(1 - \beta_t) \cdot 1 + \beta_t = 1$: the numbers keep their size, and every step
// gives the network an input of the kind that it knows. Leave the shrinking out and the size grows
// without end. Here is the mean square of pixels after a thousand steps, both ways:
//
// ```text
// mean square of the pixels: 0.73 at first
// after 1000 steps of eq. 2: 0.99; without shrinking: 10.76
// ```
void one_step_at_a_time(const Schedule& schedule, const Tensor& x_0) {
  Generator random(1);
  Tensor x = x_0, unshrunk = x_0;
  for (int64_t t = 0; t < schedule.T; ++t) {
    const Tensor eps = normal_like(x, random);
    x = q_step(schedule, x, full_timesteps(t, x), eps);
    unshrunk = unshrunk + std::sqrt(at(schedule.beta, t)) * eps;
  }
  const auto mean_square = [](const Tensor& pixels) { return mean(square(pixels)).item(); };
  fmt::print("mean square of the pixels: {:.2f} at first\n", mean_square(x_0));
  fmt::print("after {} steps of eq. 2: {:.2f}; without shrinking: {:.2f}\n", schedule.T,
             mean_square(x), mean_square(unshrunk));
}

// ## All steps at once: eq. 8
//
// A thousand steps for one training example would be a waste. Luckily they collapse into one. Write
// $\alpha_t = 1 - \beta_t$ and suppose that we already have
// $x_{t-1} = \sqrt{\bar\alpha_{t-1}}\, x_0 + \sqrt{1 - \bar\alpha_{t-1}}\, \epsilon$. One more
// step:
//
// $$x_t = \sqrt{\alpha_t}\, x_{t-1} + \sqrt{\beta_t}\, \epsilon'
//   = \sqrt{\alpha_t \bar\alpha_{t-1}}\, x_0
//   + \sqrt{\alpha_t (1 - \bar\alpha_{t-1})}\, \epsilon + \sqrt{\beta_t}\, \epsilon'$$
//
// The two noises are independent and normal, so their sum is one normal noise, of variance
// $\alpha_t (1 - \bar\alpha_{t-1}) + \beta_t = 1 - \alpha_t \bar\alpha_{t-1}$. With
// $\bar\alpha_t = \alpha_t \bar\alpha_{t-1}$ that is what we started from, at $t$ instead of $t-1$.
// So it holds for every $t$, and this is eq. 8:
//
// $$q(x_t \mid x_0) = \mathcal{N}\left(x_t; \sqrt{\bar\alpha_t}\, x_0,\, (1 - \bar\alpha_t)
//   \mathbf{I}\right), \qquad \bar\alpha_t = \prod_{s \le t} \alpha_s$$
//
// The program takes a pixel of value 0.8 through the chain 50,000 times, one step of eq. 2 after
// the other, and compares the mean and the variance of what comes out with eq. 8 (of so many draws
// the last digit is chance):
//
// ```text
//    t   mean: chain   eq. 8   variance: chain   eq. 8
//    9          0.80    0.80              0.00    0.00
//   99          0.76    0.76              0.10    0.10
//  249          0.58    0.58              0.47    0.48
//  499          0.23    0.22              0.92    0.92
//  999          0.00    0.01              1.01    1.00
// ```
void all_at_once(const Schedule& schedule) {
  Generator random(2);
  Tensor x = Tensor::full({50000, 1}, 0.8, DType::kFloat64);
  const Tensor pixel = Tensor::full({1, 1}, 0.8, DType::kFloat64);
  fmt::print("   t   mean: chain   eq. 8   variance: chain   eq. 8\n");
  for (int64_t t = 0; t < schedule.T; ++t) {
    x = q_step(schedule, x, full_timesteps(t, x), normal_like(x, random));
    if (t != 9 && t != 99 && t != 249 && t != 499 && t != 999) continue;
    const Gaussian q = q_mean_variance(schedule, pixel, full_timesteps(t, pixel));
    fmt::print("{:4} {:13.2f} {:7.2f} {:17.2f} {:7.2f}\n", t, mean(x).item(), q.mean.item(),
               mean(square(x - mean(x))).item(), q.variance.item());
  }
}

// ## Drawing from it: eq. 9, and two schedules
//
// To draw from a normal distribution, take standard noise, scale it and move it:
//
// $$x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon,
//   \qquad \epsilon \sim \mathcal{N}(0, \mathbf{I})$$
//
// This is eq. 9, and it is one line of code: `q_sample`. All that is left to choose is $\beta_t$.
// Ho, Jain and Abbeel let it rise in a straight line from 0.0001 to 0.02. Nichol and Dhariwal
// choose $\bar\alpha_t$ instead, a quarter of a wave of a cosine, squared (eq. 17), and let
// $\beta_t$ follow from it:
//
// $$\bar\alpha_t = \frac{f(t)}{f(0)}, \quad
//   f(t) = \cos^2\left(\frac{t/T + s}{1 + s} \cdot \frac{\pi}{2}\right), \quad s = 0.008;
//   \qquad \beta_t = 1 - \frac{\bar\alpha_t}{\bar\alpha_{t-1}}$$
//
// The small $s$ keeps the first steps from being too small to see. At the end of the wave
// $\bar\alpha$ would be 0 and $\beta$ would be 1, an image destroyed for good; so $\beta$ is cut
// off at 0.999. That concerns the last step alone; up to there the table is the formula:
//
// ```text
// cosine: 1 beta of 1000 is cut off, the largest other one is 0.750
// alpha_bar is eq. 17 at the other 999 steps, to 1e-12: yes
// ```
//
// ![One image dissolving on both schedules](07_dissolve.png)
void dissolve(const Schedule& linear, const Schedule& cosine, const Tensor& x_0,
              const Options& options) {
  const auto f = [&](int64_t t) {  // t as in the paper
    const double share = static_cast<double>(t) / static_cast<double>(cosine.T);
    return std::pow(std::cos((share + 0.008) / 1.008 * std::acos(-1.0) / 2), 2);
  };
  int cut_off = 0;
  double largest_other = 0, worst = 0;
  for (int64_t t = 0; t < cosine.T; ++t) {
    const double beta_t = at(cosine.beta, t);
    if (beta_t == 0.999) {
      ++cut_off;
    } else {
      largest_other = std::max(largest_other, beta_t);
      worst = std::max(worst, std::abs(at(cosine.alpha_bar, t) - f(t + 1) / f(0)));
    }
  }
  fmt::print("cosine: {} beta of {} is cut off, the largest other one is {:.3f}\n", cut_off,
             cosine.T, largest_other);
  fmt::print("alpha_bar is eq. 17 at the other {} steps, to 1e-12: {}\n", cosine.T - cut_off,
             worst < 1e-12 ? "yes" : "no");

  const std::vector<int64_t> shown = {0, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999};
  const auto columns = static_cast<int64_t>(shown.size());
  const Tensor t = Tensor::from<int64_t>({columns}, shown);
  const Tensor copies = broadcast_to(x_0.slice(0, 1), {columns, 28, 28, 1}).clone();
  Generator random(3);
  const Tensor eps = normal_like(copies, random);
  std::vector<std::string> labels;
  for (int64_t step : shown) labels.push_back(fmt::format("t={}", step));
  save(options, "07_dissolve.png",
       labelled_rows(labels, {{"linear", q_sample(linear, copies, t, eps)},
                              {"cosine", q_sample(cosine, copies, t, eps)}}));
}

// ## Signal and noise
//
// What a step is worth to the network depends on how much of the image it can still see. Measure it
// by the signal-to-noise ratio, the square of the image's factor in eq. 9 over the square of the
// noise's: $\bar\alpha_t / (1 - \bar\alpha_t)$. Above 1 the image is the louder one; below 0.01 the
// eye finds nothing. By that measure the last third of the linear schedule is wasted: noise that
// becomes slightly different noise. The cosine schedule spends those steps in the middle, where
// there is something to learn:
//
// ```text
// linear: more noise than signal from t = 259, less than a hundredth of signal from t = 674
// cosine: more noise than signal from t = 496, less than a hundredth of signal from t = 936
// ```
//
// ![Signal-to-noise ratio over t](07_signal_to_noise.png)
//
// Two facts to take along. With eq. 9 a training example costs one draw of noise, at any $t$. And
// eq. 9 can be solved for $x_0$: whoever knows the noise knows the image. Tutorial 8 begins there.
void signal_to_noise(const std::vector<std::pair<std::string, const Schedule*>>& processes,
                     const Options& options) {
  std::vector<app::Curve> curves;
  for (const auto& [name, schedule] : processes) {
    const auto ratio = [table = schedule->alpha_bar](int64_t t) {
      return at(table, t) / (1 - at(table, t));
    };
    const auto first_below = [&ratio, T = schedule->T](double limit) {
      int64_t t = 0;
      while (t < T && ratio(t) >= limit) ++t;
      return t;
    };
    fmt::print(
        "{}: more noise than signal from t = {}, less than a hundredth of signal from t = {}\n",
        name, first_below(1), first_below(0.01));
    const bool is_cosine = name == "cosine";
    curves.push_back(curve(
        name, is_cosine ? std::array<uint8_t, 3>{210, 80, 20} : std::array<uint8_t, 3>{0, 90, 160},
        schedule->T, ratio));
  }
  save(options, "07_signal_to_noise.png", app::draw_plot("signal-to-noise ratio", "t", curves));
}

}  // namespace

void tutorial_main(const Options& options) {
  const Schedule linear(linear_beta_schedule(1000)), cosine(cosine_beta_schedule(1000));
  const Tensor x_0 = images(16);
  one_step_at_a_time(linear, x_0);
  all_at_once(linear);
  dissolve(linear, cosine, x_0, options);
  signal_to_noise({{"linear", &linear}, {"cosine", &cosine}}, options);
}

}  // namespace mutilde::tutorial
