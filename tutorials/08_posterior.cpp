// # 8. The posterior, and two routes to one mean
//
// To sample, a network is asked again and again: here is $x_t$, what was $x_{t-1}$? The answer is a
// normal distribution, and what matters is its mean. In the paper that mean is eq. 13. In the code,
// the original program's and this one's, it is eq. 11. Readers ask two things about that:
//
// 1. *Eq. 11 is the mean of the **true** posterior, which knows $x_0$. How can a sampler use it?*
// 2. *Why is $x_0$ predicted first, when eq. 13 leads from the noise to the mean in one line?*
//
// We derive both, run both, see where they part. As in tutorial 7, a step adds noise of variance
// $\beta_t$, $\alpha_t = 1 - \beta_t$, and $\bar\alpha_t$ is the product of all up to $t$. At the
// first, $t = 0$ in the program, $\bar\alpha_{t-1} = 1$: there the posterior is $x_0$ itself.
#include <cmath>

#include "core/ops/ops.h"
#include "diffusion/gaussian_diffusion.h"
#include "tutorials/tutorial.h"

namespace mutilde::tutorial {
namespace {

double largest(const Tensor& x) { return max(abs(x)).item(); }

// ## The step back when the image is known: eq. 10 and 11
//
// Suppose that $x_0$ is known. Bayes' rule makes the step back out of two steps forward:
//
// $$q(x_{t-1} \mid x_t, x_0) \propto q(x_t \mid x_{t-1})\; q(x_{t-1} \mid x_0)$$
//
// The first factor is eq. 2, the second eq. 8 at $t-1$. Both are normal, so the logarithm of the
// product, as a function of $x_{t-1}$, is a constant and
//
// $$-\frac12 \left( \frac{(x_t - \sqrt{\alpha_t}\, x_{t-1})^2}{\beta_t}
//   + \frac{(x_{t-1} - \sqrt{\bar\alpha_{t-1}}\, x_0)^2}{1 - \bar\alpha_{t-1}} \right)$$
//
// A parabola in $x_{t-1}$: the posterior is normal too. One over its variance is the factor of
// $x_{t-1}^2$ in the large brackets,
//
// $$\frac{1}{\tilde\beta_t} = \frac{\alpha_t}{\beta_t} + \frac{1}{1 - \bar\alpha_{t-1}}
//   = \frac{\alpha_t - \bar\alpha_t + \beta_t}{\beta_t (1 - \bar\alpha_{t-1})}
//   = \frac{1 - \bar\alpha_t}{\beta_t (1 - \bar\alpha_{t-1})}$$
//
// because $\alpha_t \bar\alpha_{t-1} = \bar\alpha_t$ and $\alpha_t + \beta_t = 1$. Turned over,
// that is eq. 10. The mean is where the parabola's slope is zero:
//
// $$\frac{\tilde\mu_t}{\tilde\beta_t} = \frac{\sqrt{\alpha_t}}{\beta_t}\, x_t
//   + \frac{\sqrt{\bar\alpha_{t-1}}}{1 - \bar\alpha_{t-1}}\, x_0
//   \quad\Longrightarrow\quad \tilde\mu_t = a\, x_0 + b\, x_t,$$
//
// $$a = \frac{\sqrt{\bar\alpha_{t-1}}\, \beta_t}{1 - \bar\alpha_t}, \qquad
//   b = \frac{\sqrt{\alpha_t}\, (1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t}$$
//
// which is eq. 11; eq. 12 joins the two. Do not take our word: for one pixel, $x_0 = 0.5$ and
// $x_t = 0.6$, the densities are multiplied and summed on a fine grid, beside the library's.
//
// ```text
//    t   mean: grid    eq. 11   variance: grid    eq. 10
//    1       0.5455    0.5455        5.453e-05 5.453e-05
//  100       0.5981    0.5981        2.055e-03 2.055e-03
//  500       0.5980    0.5980        1.005e-02 1.005e-02
//  999       0.5940    0.5940        2.000e-02 2.000e-02
// ```
void posterior_by_brute_force(const Schedule& schedule) {
  const Tensor x_0 = Tensor::full({1, 1}, 0.5, DType::kFloat64), x_t = 1.2 * x_0;
  const Tensor x_prev = 1e-4 * Tensor::arange(120000).to(DType::kFloat64) - 6.0;
  fmt::print("   t   mean: grid    eq. 11   variance: grid    eq. 10\n");
  for (int64_t t : {1, 100, 500, 999}) {
    const double alpha_bar_prev_t = at(schedule.alpha_bar_prev, t);
    const Tensor from_prev = x_t - std::sqrt(at(schedule.alpha, t)) * x_prev;  // Eq. 2
    const Tensor from_0 = x_prev - std::sqrt(alpha_bar_prev_t) * x_0;          // Eq. 8
    const Tensor product = exp(-0.5 * (square(from_prev) / at(schedule.beta, t) +
                                       square(from_0) / (1 - alpha_bar_prev_t)));
    const Tensor share = product / sum(product);
    const double mean = sum(share * x_prev).item();
    const double variance = sum(share * square(x_prev - mean)).item();
    const Gaussian q = q_posterior(schedule, x_0, x_t, full_timesteps(t, x_t));
    fmt::print("{:4} {:12.4f} {:9.4f} {:16.3e} {:9.3e}\n", t, mean, q.mean.item(), variance,
               q.variance.item());
  }
}

// ## The step back when it is not: eq. 13
//
// A sampler has no $x_0$, but a network that has learned to say which noise is in $x_t$:
// $\epsilon_\theta(x_t, t)$. Eq. 9 ties state, image and noise together, and any two of them give
// the third. Here it is, and solved for the image:
//
// $$x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon, \qquad
//   \hat x_0 = \sqrt{1/\bar\alpha_t}\; x_t - \sqrt{1/\bar\alpha_t - 1}\; \epsilon_\theta$$
//
// In code the second is easily taken for eq. 13, but look at the bar over the alpha. Now put
// $\hat x_0$ where eq. 11 wants an image, and collect. With
// $\bar\alpha_t = \alpha_t \bar\alpha_{t-1}$ the factors of $\epsilon_\theta$ and of $x_t$ become
//
// $$-a\, \frac{\sqrt{1 - \bar\alpha_t}}{\sqrt{\bar\alpha_t}}
//   = -\frac{1}{\sqrt{\alpha_t}} \cdot \frac{\beta_t}{\sqrt{1 - \bar\alpha_t}}, \qquad
//   \frac{a}{\sqrt{\bar\alpha_t}} + b
//   = \frac{\beta_t + \alpha_t - \bar\alpha_t}{\sqrt{\alpha_t}\, (1 - \bar\alpha_t)}
//   = \frac{1}{\sqrt{\alpha_t}}$$
//
// Together, and this is eq. 13, letter for letter:
//
// $$\mu_\theta = \frac{1}{\sqrt{\alpha_t}}
//   \left( x_t - \frac{\beta_t}{\sqrt{1 - \bar\alpha_t}}\, \epsilon_\theta \right)$$
//
// Nothing was assumed about $\epsilon_\theta$: it may come from a good network or from a bad one.
//
// ## What the detour is for: clipping
//
// The long way passes through a picture, and of pictures we know something that the algebra does
// not: a pixel lies in $[-1, 1]$. So the code clips $\hat x_0$ to that range before it goes on to
// eq. 11, which the paper does not mention. Eq. 11 is a straight line in $x_0$, so that moves the
// mean by exactly $a\, (\hat x_0 - \mathrm{clip}(\hat x_0))$: nothing where $\hat x_0$ is in range.
// It is the *only* thing that parts the two routes. Both claims are put to the test at every step
// of both schedules, on four images, to $10^{-12}$. Our network knows the noise up to an error of
// size 0.1.
//
// ```text
// linear, 1000 steps: unclipped the routes agree: yes; clipped they differ by the law: yes
// cosine, 1000 steps: unclipped the routes agree: yes; clipped they differ by the law: yes
// ```
void two_routes(const char* name, const Schedule& schedule, const Tensor& x_0) {
  Generator random(1);
  double apart = 0, apart_from_law = 0;
  for (int64_t t = 0; t < schedule.T; ++t) {
    const Tensor steps = full_timesteps(t, x_0), eps = normal_like(x_0, random);
    const Tensor x_t = q_sample(schedule, x_0, steps, eps);  // Eq. 9
    const Tensor eps_theta = eps + 0.1 * normal_like(x_0, random);
    const Tensor direct = mean_from_eps(schedule, x_t, steps, eps_theta);  // Eq. 13
    const Tensor detour = mean_through_x0(schedule, x_t, steps, eps_theta, /*clip=*/false);
    const Tensor clipped = mean_through_x0(schedule, x_t, steps, eps_theta, /*clip=*/true);
    const Tensor x_0_hat = predict_x0_from_eps(schedule, x_t, steps, eps_theta);
    const Tensor law = at(schedule.mu_tilde_x_0, t) * (x_0_hat - clamp(x_0_hat, -1, 1));
    apart = std::max(apart, largest(direct - detour));
    apart_from_law = std::max(apart_from_law, largest(direct - clipped - law));
  }
  fmt::print("{}, {} steps: unclipped the routes agree: {}; clipped they differ by the law: {}\n",
             name, schedule.T, apart < 1e-12 ? "yes" : "no", apart_from_law < 1e-12 ? "yes" : "no");
}

// ## How much it matters, by t
//
// An error $d$ of $\epsilon_\theta$ becomes $\sqrt{1/\bar\alpha_t - 1}\; d$ in $\hat x_0$: enormous
// late in the process, where $\bar\alpha_t$ is almost 0. Eq. 11 then multiplies by $a$, which is
// tiny there, and the product is eq. 13's own factor of $\epsilon_\theta$. The table has both, then
// what clipping does where the error is 0.1 at every $t$ (a trained network's depends on $t$; this
// is the equations' doing alone), and for scale the noise that the step adds,
// $\sqrt{\tilde\beta_t}$.
//
// ```text
// linear  error in x_0   in mean   outside   clipping moves by   noise added
// t =   0        0.01    0.0100     31.8%             0.00026        0.0000
// t = 500       3.443    0.0105     38.6%             0.00032        0.1003
// t = 999       157.4    0.0202     95.6%             0.00152        0.1414
// cosine  error in x_0   in mean   outside   clipping moves by   noise added
// t =   0    0.006425    0.0064     31.8%             0.00016        0.0000
// t = 500       1.016    0.0044     34.2%             0.00012        0.0561
// t = 990       71.29    0.2111     89.3%             0.01450        0.4359
// t = 999   2.029e+04   31.5912     99.9%             2.57110        0.9995
// ```
//
// Early on a third of the pixels is outside, but by a hair: the background is exactly $-1$, and any
// error pushes half of it out. Late, nearly all are outside, and far. Yet of an error of 157 in the
// image the linear schedule lets 0.02 through, whereas the cosine schedule, at $t = 999$, lets
// 31.6 through: there $\beta_t = 0.999$, and eq. 13 divides by $\sqrt{0.001}$.
//
// ![An error of the noise, as it arrives in the image and in the mean](08_errors.png)
// ![Pixels of the predicted image above the range (white) and below it (black)](08_outside.png)
void how_much(const char* name, const Schedule& schedule, const Tensor& x_0, std::vector<Row>& rows,
              std::vector<app::Curve>& curves) {
  const auto to_x_0 = [&](int64_t t) { return at(schedule.sqrt_recip_alpha_bar_minus_one, t); };
  const auto to_mean = [&](int64_t t) { return to_x_0(t) * at(schedule.mu_tilde_x_0, t); };
  const uint8_t red = curves.empty() ? 0 : 220;
  curves.push_back(curve(fmt::format("{} x_0", name), {red, 170, 200}, schedule.T, to_x_0));
  curves.push_back(curve(fmt::format("{} mean", name), {red, 80, 120}, schedule.T, to_mean));
  Generator random(3);
  const Tensor eps = normal_like(x_0, random), eps_theta = eps + 0.1 * normal_like(x_0, random);
  for (const std::string& label : {fmt::format("{}: x_t", name), std::string("outside")})
    rows.push_back({label, Tensor::zeros({8, 28, 28, 1}, x_0.dtype())});
  fmt::print("{}  error in x_0   in mean   outside   clipping moves by   noise added\n", name);
  int64_t column = 0;
  for (int64_t t : {0, 100, 250, 500, 750, 900, 990, 999}) {
    const Tensor steps = full_timesteps(t, x_0), x_t = q_sample(schedule, x_0, steps, eps);
    const Tensor x_0_hat = predict_x0_from_eps(schedule, x_t, steps, eps_theta);
    const Tensor over = x_0_hat - clamp(x_0_hat, -1, 1);
    const Tensor side = clamp(1e9 * over, -1, 1);  // -1, 0 or 1
    fmt::print("t = {:3} {:11.4g} {:9.4f} {:8.1f}% {:19.5f} {:13.4f}\n", t, to_x_0(t), to_mean(t),
               100 * mean(abs(side)).item(), at(schedule.mu_tilde_x_0, t) * mean(abs(over)).item(),
               std::sqrt(at(schedule.beta_tilde, t)));
    rows.rbegin()[1].images.slice(column, column + 1).copy_(x_t.slice(0, 1));
    rows.rbegin()[0].images.slice(column, column + 1).copy_(side.slice(0, 1));
    ++column;
  }
}

// ## The first step of a network that has learned nothing
//
// A UNet starts with zeros in its last layer (tutorial 6), so a new one says $\epsilon_\theta = 0$,
// and eq. 13 is $x_t / \sqrt{\alpha_t}$. Sampling starts from noise of size 1, and the next state
// should have that size. Without clipping the cosine schedule makes it 32 times as large; clipping
// moves a pixel by tens, a few by more than 100. With the linear one this one step hardly matters.
//
// ```text
// linear: clipping moves the mean by 0.016, at most 0.0683; size 1.01, clipped 0.99
// cosine: clipping moves the mean by 25, at most 107; size 31.53, clipped 0.99
// ```
void untrained(const char* name, const Schedule& schedule) {
  Generator random(4);
  const Tensor x_t = random.normal({8, 28, 28, 1}, DType::kFloat64), eps_theta = zeros_like(x_t);
  const int64_t t = schedule.T - 1;
  const Tensor steps = full_timesteps(t, x_t);
  const Tensor noise = std::sqrt(at(schedule.beta_tilde, t)) * normal_like(x_t, random);
  const Tensor direct = mean_from_eps(schedule, x_t, steps, eps_theta);
  const Tensor clipped = mean_through_x0(schedule, x_t, steps, eps_theta, /*clip=*/true);
  const auto size = [](const Tensor& x) { return std::sqrt(mean(square(x)).item()); };
  fmt::print("{}: clipping moves the mean by {:.2g}, at most {:.3g}; size {:.2f}, clipped {:.2f}\n",
             name, mean(abs(direct - clipped)).item(), largest(direct - clipped),
             size(direct + noise), size(clipped + noise));
}

}  // namespace

// ## The two answers
//
// 1. *Why eq. 11?* Because it is eq. 13, for every $t$, $x_t$ and $\epsilon_\theta$. And because it
//    is right: the mean of $x_{t-1}$ is eq. 11 at the average of all images that may be in $x_t$,
//    and that average is what a network learns ([in four lines](../docs/why-eq-11.md)).
// 2. *Why by way of $x_0$?* Because $\hat x_0$ can be clipped to the range of pixels, and eq. 13
//    cannot. Where it leaves the range, that moves the mean towards the right one, by a known
//    amount. With the cosine schedule the first step depends on it; what a thousand others add up
//    to, [trained networks](../docs/clipping.md) show.
//
// And $\hat x_0$ is good for more: tutorial 10 writes DDIM in it; every step has its picture.
void tutorial_main(const Options& options) {
  const Tensor x_0 = images(4);
  const std::vector<std::pair<const char*, Schedule>> processes = {
      {"linear", Schedule(linear_beta_schedule(1000))},
      {"cosine", Schedule(cosine_beta_schedule(1000))}};
  posterior_by_brute_force(processes[0].second);
  for (const auto& [name, schedule] : processes) two_routes(name, schedule, x_0);
  std::vector<Row> rows;
  std::vector<app::Curve> curves;
  for (const auto& [name, schedule] : processes) how_much(name, schedule, x_0, rows, curves);
  save(options, "08_outside.png",
       labelled_rows({"t=0", "t=100", "t=250", "t=500", "t=750", "t=900", "t=990", "t=999"}, rows));
  save(options, "08_errors.png", app::draw_plot("error, per error of eps", "t", curves));
  for (const auto& [name, schedule] : processes) untrained(name, schedule);
}

}  // namespace mutilde::tutorial
