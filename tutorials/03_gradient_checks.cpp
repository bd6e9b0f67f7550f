// # 3. Gradient checks: how to know that a backward pass is right
//
// A wrong forward pass gives wrong pictures, and you notice. A wrong backward pass still learns,
// only worse, and you may blame the learning rate for a year. So every op of this library is held
// against the definition of the derivative, and this page shows how, what precision it takes, and
// how to check an op of your own.
#include <cmath>

#include "app/plot.h"
#include "core/gradcheck.h"
#include "core/ops/ops.h"
#include "tutorials/tutorial.h"

namespace mutilde::tutorial {
namespace {

// ## Differences
//
// To find $f'(x)$ without knowing anything about $f$, move $x$ by a small $h$ to both sides. From
// Taylor's series, $f(x \pm h) = f \pm h f' + \frac{h^2}{2} f'' \pm \frac{h^3}{6} f''' + \ldots$,
// the even terms cancel:
//
// $$\frac{f(x + h) - f(x - h)}{2h} = f'(x) + \frac{h^2}{6} f'''(x) + \ldots$$
//
// So make $h$ tiny? No: a computer rounds $x + h$ and $f$, each to a relative error of about $u$,
// which is $10^{-7}$ in float32 and $10^{-16}$ in float64, and the division blows that up to
// $u |f| / h$. The total
//
// $$\mathrm{error}(h) \approx \frac{h^2}{6} |f'''| + \frac{u\,|f|}{h}$$
//
// falls with $h$, and then rises again. Its lowest point is at $h \approx u^{1/3}$ and is about
// $u^{2/3}$ high: some $10^{-5}$ in float32, which tells a sign error from a correct gradient but
// not a small mistake from round-off; and $10^{-11}$ in float64. That is why everything here also
// runs in float64. Two more points, at $\pm 2h$, cancel the $h^2$ as well:
//
// $$\frac{8\,(f(x + h) - f(x - h)) - (f(x + 2h) - f(x - 2h))}{12 h} = f'(x) - \frac{h^4}{30}
//   f^{(5)}(x) + \ldots$$
//
// with a lowest point of $u^{4/5}$, near $h = 10^{-3}$. This is what `gradcheck` uses. We measure
// all three with $f = \sin$, where the answer is known, at 4,000 random places, and take the root
// of the mean square. Of the powers of ten, these are the best:
//
// ```text
// float32, 2 points: best at h = 1e-2, error about 1e-5
// float64, 2 points: best at h = 1e-5, error about 1e-11
// float64, 4 points: best at h = 1e-3, error about 1e-13
// ```
//
// ![Errors of the difference quotients over the step](03_errors.png)
struct Quotient {
  const char* name;
  DType dtype;
  bool four_points;
};

double error_of(const Quotient& quotient, double h) {
  const Tensor x = (3 * Generator(1).uniform({4000}, DType::kFloat64)).to(quotient.dtype);
  const auto f = [&](double distance) { return sin(x + distance); };
  const Tensor near = f(h) - f(-h);
  const Tensor slope =
      quotient.four_points ? (8 * near - (f(2 * h) - f(-2 * h))) / (12 * h) : near / (2 * h);
  const Tensor error = slope.to(DType::kFloat64) - cos(x.to(DType::kFloat64));
  return std::sqrt(mean(square(error)).item());
}

void error_curves(const Options& options) {
  std::vector<app::Curve> curves = {{"float64, 4 points", {0, 120, 60}, 2.5, {}, {}},
                                    {"float64, 2 points", {0, 80, 160}, 2.5, {}, {}},
                                    {"float32, 2 points", {200, 70, 10}, 2.5, {}, {}}};
  const Quotient quotients[] = {{"float64, 4 points", DType::kFloat64, true},
                                {"float64, 2 points", DType::kFloat64, false},
                                {"float32, 2 points", DType::kFloat32, false}};
  for (int i = 2; i >= 0; --i) {
    double best = 1, best_log_h = 0;
    for (int tenths = -110; tenths <= -4; ++tenths) {
      const double log_h = tenths / 10.0, error = error_of(quotients[i], std::pow(10.0, log_h));
      curves[static_cast<size_t>(i)].x.push_back(log_h);
      curves[static_cast<size_t>(i)].y.push_back(error);
      if (tenths % 10 == 0 && error < best) best = error, best_log_h = log_h;
    }
    fmt::print("{}: best at h = 1e{:.0f}, error about 1e{:.0f}\n", quotients[i].name, best_log_h,
               std::log10(best));
  }
  save(options, "03_errors.png", app::draw_plot("error", "log10 of the step h", curves));
}

// ## An op of your own
//
// Suppose you want the "swish" with a slope of its own, $y = x\, \sigma(k x)$, with
// $\sigma(z) = 1 / (1 + e^{-z})$ and one $k$ for all elements. By the product rule, and because
// $\sigma' = \sigma (1 - \sigma)$,
//
// $$\frac{\partial y}{\partial x} = \sigma + k x\, \sigma (1 - \sigma), \qquad
//   \frac{\partial y}{\partial k} = x^2\, \sigma (1 - \sigma)$$
//
// An op computes its output, and hands `record` a function from the output's cotangent to the
// inputs'. The single number $k$ is used by all elements, so its cotangent is a sum over all. (In
// real code you would write `x * sigmoid(k * x)` and be done, with the tape doing the rest; here we
// want to do it by hand.) We also plant two mistakes that people really make: to forget the product
// rule's second term, and to forget that sum, taking a mean.
enum class Bug { kNone, kDroppedTerm, kMeanForSum };

Tensor swish(const Tensor& x, const Tensor& k, Bug bug) {
  Tensor out;
  {
    const NoGrad no_grad;  // the ops inside are not to be recorded: this is one op
    out = x * sigmoid(k * x);
  }
  return record(
      "swish", out, {x, k}, [x = x.detach(), k = k.detach(), bug](const Tensor& cotangent) {
        const Tensor s = sigmoid(k * x);
        const Tensor slope = s * (1.0 - s);
        const Tensor dx = bug == Bug::kDroppedTerm ? s : s + k * x * slope;
        const Tensor dk = cotangent * square(x) * slope;
        return std::vector<Tensor>{cotangent * dx, bug == Bug::kMeanForSum ? mean(dk) : sum(dk)};
      });
}

// ## What gradcheck does
//
// It draws a random tensor $c$ of the output's shape and takes the number $\sum_i c_i\, y_i$. Then
// it moves every element of every input by $\pm h$ and $\pm 2h$, and compares what the number does
// with what `backward` says. It allows a relative error of $10^{-7}$. The right op is far below
// that, and both planted ones are caught:
//
// ```text
// as derived: passed, relative error below 1e-10
// a term dropped: failed, relative error 0.22
// a mean for a sum: failed, relative error 0.95
// ```
//
// Where something is wrong, the program also prints gradcheck's message, which names the worst
// element with both values: a look at it often tells which term is to blame.
void check_swish() {
  Generator random(3);
  Tensor x = random.normal({4, 5}, DType::kFloat64), k = Tensor::full({}, 1.3, DType::kFloat64);
  x.set_requires_grad(true);
  k.set_requires_grad(true);
  const std::pair<const char*, Bug> cases[] = {{"as derived", Bug::kNone},
                                               {"a term dropped", Bug::kDroppedTerm},
                                               {"a mean for a sum", Bug::kMeanForSum}};
  for (const auto& [name, bug] : cases) {
    const auto function = [&, bug = bug](const std::vector<Tensor>& in) {
      return swish(in[0], in[1], bug);
    };
    const GradcheckReport report = gradcheck(function, {x, k});
    const std::string error =
        report.worst_error < 1e-10 ? "below 1e-10" : fmt::format("{:.2f}", report.worst_error);
    fmt::print("{}: {}, relative error {}\n", name, report.passed ? "passed" : "failed", error);
    if (!report.passed) fmt::print("  {}\n", report.message);
  }
}

// ## Why the random numbers
//
// The obvious thing to check is the gradient of the plain sum $\sum_i y_i$. Many projects do, and
// it is a trap. The softmax's outputs add up to 1 whatever the inputs are: the gradient of their
// sum is zero. A softmax whose backward returns nothing but zeros is *right* about that sum. Here
// is one:
//
// ```text
// broken softmax, its sum: right to 1e-11
// broken softmax, gradcheck: failed
// ```
//
// A group norm has the same property. With random factors $c_i$, the sum depends on everything, and
// nothing can hide. `gradcheck` also refuses a function whose numeric gradient is zero everywhere.
Tensor broken_softmax(const Tensor& x) {
  return record("broken_softmax", softmax(x.detach()), {x},
                [](const Tensor& cotangent) { return std::vector<Tensor>{zeros_like(cotangent)}; });
}

void why_random() {
  Tensor x = Generator(4).normal({3, 6}, DType::kFloat64);
  x.set_requires_grad(true);
  sum(broken_softmax(x)).backward();
  double worst = 0;
  for (int64_t i = 0; i < x.numel(); ++i) {
    const auto sum_at = [&](double distance) {
      const Tensor moved = x.clone();
      moved.data<double>()[i] += distance;
      return sum(softmax(moved)).item();
    };
    const double numeric = (sum_at(1e-3) - sum_at(-1e-3)) / 2e-3;
    worst = std::max(worst, std::abs(numeric - x.grad().data<double>()[i]));
  }
  fmt::print("broken softmax, its sum: {} to 1e-11\n", worst < 1e-11 ? "right" : "wrong");
  const GradcheckReport report =
      gradcheck([](const std::vector<Tensor>& in) { return broken_softmax(in[0]); }, {x});
  fmt::print("broken softmax, gradcheck: {}\n", report.passed ? "passed" : "failed");
}

// ## Where a check cannot help
//
// A function with a kink, such as `abs` or `clamp`, has no derivative there, and a difference
// across the kink is neither the left slope nor the right one. So keep inputs more than $2h$ away
// from it. Here `clamp` to $[-1, 1]$ is checked at two points: one safely inside, and one
// at 1.0005, half a step from the border.
//
// ```text
// clamp at 0.5: passed
// clamp at 1.0005: failed
// ```
//
// The second "failure" is the check's fault and not clamp's. A tolerance that is loose enough for
// it to pass would let real mistakes through; moving the input is the better answer.
void at_a_kink() {
  for (double at : {0.5, 1.0005}) {
    Tensor x = Tensor::full({1}, at, DType::kFloat64);
    x.set_requires_grad(true);
    const auto clamped = [](const std::vector<Tensor>& in) {
      return clamp(in[0], -1, 1) + 0.1 * in[0];
    };
    fmt::print("clamp at {}: {}\n", at, gradcheck(clamped, {x}).passed ? "passed" : "failed");
  }
}

}  // namespace

void tutorial_main(const Options& options) {
  error_curves(options);
  check_swish();
  why_random();
  at_a_kink();
}

}  // namespace mutilde::tutorial
