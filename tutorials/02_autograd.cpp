// # 2. Autograd: derivatives from a tape
//
// Training a network means asking, for each of its millions of parameters: if I move this one a
// little, how does the loss move? These are derivatives, and nobody writes them down by hand. The
// program that computes the loss computes them too, for about the price of computing the loss twice
// more. The idea fits on a page, so first we write it ourselves, and then we look at the library's.
#include <cmath>
#include <memory>

#include "core/ops/ops.h"
#include "tutorials/tutorial.h"

// ## The idea
//
// A program, however long, is a chain of small steps whose derivatives we know. Let $L$ be the
// final result. For each intermediate value $v$ we want its *cotangent*, which is
// $\bar v = \partial L / \partial v$. If $v$ was used to make $y_1, y_2, \ldots$, the chain rule
// says
//
// $$\bar v = \sum_i \frac{\partial y_i}{\partial v}\, \bar y_i$$
//
// Read it from the right: whoever knows the cotangent of a step's *output* can give its *inputs*
// their share. So start at the end with $\bar L = 1$ and walk backwards. When the walk comes to
// $v$, everything that was made from $v$ has already been visited (it was made later), so $\bar v$
// is complete. All that is needed is a list of the steps, in the order in which they happened.
// Such a list is called a tape.
//
// ## A tape in sixty lines
//
// An entry of the tape belongs to one number. It keeps the value, its cotangent, and a function
// that passes the cotangent on to what the value was made from. An operation does two things: it
// computes its result, and it puts an entry on the tape. For $y = ab$ the derivative
// $\partial y / \partial a$ is $b$, and so on. Nothing else is here.
namespace own {

struct Entry {
  double value;
  double cotangent = 0;
  std::function<void(double cotangent)> backward = {};  // gives the inputs their share
};
using Number = std::shared_ptr<Entry>;

std::vector<Number> tape;

Number record(double value, std::function<void(double)> backward = {}) {
  tape.push_back(std::make_shared<Entry>(Entry{value, 0, std::move(backward)}));
  return tape.back();
}

Number operator+(const Number& a, const Number& b) {
  return record(a->value + b->value, [=](double cotangent) {
    a->cotangent += cotangent;
    b->cotangent += cotangent;
  });
}

Number operator-(const Number& a, const Number& b) {
  return record(a->value - b->value, [=](double cotangent) {
    a->cotangent += cotangent;
    b->cotangent -= cotangent;
  });
}

Number operator*(const Number& a, const Number& b) {
  return record(a->value * b->value, [=](double cotangent) {
    a->cotangent += cotangent * b->value;
    b->cotangent += cotangent * a->value;
  });
}

Number tanh(const Number& x) {
  const double y = std::tanh(x->value);
  return record(y, [=](double cotangent) { x->cotangent += cotangent * (1 - y * y); });
}

void backward(const Number& result) {
  result->cotangent = 1;
  for (auto entry = tape.rbegin(); entry != tape.rend(); ++entry) {
    if ((*entry)->backward) (*entry)->backward((*entry)->cotangent);
  }
  tape.clear();
}

}  // namespace own

namespace mutilde::tutorial {
namespace {

// ## Does it work?
//
// Take $L = \tanh(x y) + x$ at $x = 0.5$, $y = 2$. By hand, with $s = \tanh(1)$:
// $\partial L / \partial x = (1 - s^2)\, y + 1$ and $\partial L / \partial y = (1 - s^2)\, x$. Note
// that $x$ is used twice and its two shares are *added*. That is the `+=` in the code, and to
// forget it is the classic mistake of one's first tape.
//
// ```text
// by hand:  dL/dx = 1.8399, dL/dy = 0.2100
// the tape: dL/dx = 1.8399, dL/dy = 0.2100
// ```
void by_hand() {
  const double s = std::tanh(1.0);
  fmt::print("by hand:  dL/dx = {:.4f}, dL/dy = {:.4f}\n", (1 - s * s) * 2 + 1, (1 - s * s) * 0.5);
  const own::Number x = own::record(0.5), y = own::record(2.0);
  own::backward(own::tanh(x * y) + x);
  fmt::print("the tape: dL/dx = {:.4f}, dL/dy = {:.4f}\n", x->cotangent, y->cotangent);
}

// ## It can learn
//
// That is enough to train a network. This one has 8 hidden units and shall follow a sine at 32
// points:
//
// $$f(x) = \sum_k v_k \tanh(w_k x + b_k)$$
//
// Each round computes the mean squared error, walks the tape, and moves every parameter a little
// against its derivative.
//
// ```text
// the tape:    loss 13.3602 before, 0.0055 after 300 rounds
// ```
constexpr int kUnits = 8, kPoints = 32, kRounds = 300;
constexpr double kRate = 0.1;

double point(int i) { return -3.0 + 6.0 * i / (kPoints - 1); }
/// Where the parameters w, b and v of the units start.
std::vector<double> start() {
  return Generator(1).normal({3 * kUnits}, DType::kFloat64).to_vector<double>();
}

void report(const char* who, double before, double after) {
  fmt::print("{:12} loss {:.4f} before, {:.4f} after {} rounds\n", who, before, after, kRounds);
}

void train_on_own_tape() {
  std::vector<double> parameters = start();
  double before = 0, after = 0;
  for (int round = 0; round < kRounds; ++round) {
    std::vector<own::Number> p;
    for (double parameter : parameters) p.push_back(own::record(parameter));
    own::Number loss = own::record(0);
    for (int i = 0; i < kPoints; ++i) {
      own::Number f = own::record(0);
      for (size_t k = 0; k < kUnits; ++k) {
        f = f + p[2 * kUnits + k] * own::tanh(p[k] * own::record(point(i)) + p[kUnits + k]);
      }
      const own::Number off = f - own::record(std::sin(point(i)));
      loss = loss + off * off * own::record(1.0 / kPoints);
    }
    (round == 0 ? before : after) = loss->value;
    own::backward(loss);
    for (size_t k = 0; k < p.size(); ++k) parameters[k] -= kRate * p[k]->cotangent;
  }
  report("the tape:", before, after);
}

// ## The same in the library
//
// Our tape spends a closure and an allocation on every single number. The library's tape has one
// entry for a whole *tensor* operation; that is the only essential difference. If $y$ and $x$ are
// tensors, $\partial y / \partial x$ is a table of all pairs, far too large to store, but it is
// never needed by itself: an op's backward maps the cotangent of its output to those of its inputs,
// whichever way is cheapest. Compare `record` above with `silu`'s or `matmul`'s in `core/ops/`.
//
// The network is a `linear`, a `tanh` and a `linear` now. It starts from the same numbers and takes
// the same steps:
//
// ```text
// the library: loss 13.3602 before, 0.0055 after 300 rounds
// ```
void train_with_the_library() {
  const Tensor all = Tensor::from<double>({3 * kUnits}, start());
  std::vector<Tensor> p = {all.slice(0, kUnits).reshape({kUnits, 1}).clone(),
                           all.slice(kUnits, 2 * kUnits).clone(),
                           all.slice(2 * kUnits, 3 * kUnits).reshape({1, kUnits}).clone()};
  for (Tensor& parameter : p) parameter.set_requires_grad(true);
  std::vector<double> points;
  for (int i = 0; i < kPoints; ++i) points.push_back(point(i));
  const Tensor x = Tensor::from<double>({kPoints, 1}, points), target = sin(x);
  double before = 0, after = 0;
  for (int round = 0; round < kRounds; ++round) {
    const Tensor f = linear(tanh(linear(x, p[0], p[1])), p[2], Tensor());
    const Tensor loss = mean_squared_error(f, target);
    (round == 0 ? before : after) = loss.item();
    loss.backward();
    const NoGrad no_grad;  // the update itself is not to be differentiated
    for (const Tensor& parameter : p) {
      parameter.copy_(parameter - kRate * parameter.grad());
      parameter.set_grad({});
    }
  }
  report("the library:", before, after);
}

// ## What else the library does
//
// - Our tape is one global list. There, each tensor owns its node, and `backward()` visits only
//   what the result was made from, counting for each node how many uses are still to come.
// - A node is freed as soon as it ran, since what it saved for the way back is most of a training
//   step's memory. So the graph can be walked once, and a second walk is an error that says so.
// - Graphs may be as deep as you like: neither the walk nor the clean-up is recursive.
// - Under `NoGrad` nothing is recorded: sampling needs no tape.
// - `checkpoint(f, inputs)` keeps none of what `f` computes and runs `f` again on the way back.
//   That is less memory for more time, and exactly the same gradient.
//
// ```text
// backward: the graph of 'square' was freed by an earlier backward(); run the forward pass again
// a chain of 200000 ops: derivative 1
// under NoGrad, the result has a tape: no
// with checkpoint, the gradient is the same: yes
// ```
void what_else() {
  const auto leaf = [] { return Tensor::full({}, 0.7, DType::kFloat64).set_requires_grad(true); };
  const Tensor x = leaf(), squared = square(x);
  squared.backward();
  try {
    squared.backward();
  } catch (const AutogradError& error) {
    fmt::print("{}\n", error.what());
  }
  const Tensor first = leaf();
  Tensor last = first;
  for (int i = 0; i < 200000; ++i) last = last + 1.0;
  last.backward();
  fmt::print("a chain of 200000 ops: derivative {:.0f}\n", first.grad().item());
  {
    const NoGrad no_grad;
    fmt::print("under NoGrad, the result has a tape: {}\n",
               square(x).requires_grad() ? "yes" : "no");
  }
  const auto f = [](const std::vector<Tensor>& in) { return silu(in[0] * in[0]) * in[0]; };
  const Tensor kept = leaf(), again = leaf();
  f({kept}).backward();
  checkpoint(f, {again}).backward();
  fmt::print("with checkpoint, the gradient is the same: {}\n",
             kept.grad().item() == again.grad().item() ? "yes" : "no");
}

}  // namespace

// How do you know that a backward pass is right? You could differentiate by hand once more, and
// make the same mistake twice. Tutorial 3 has a better way.
void tutorial_main(const Options&) {
  by_hand();
  train_on_own_tape();
  train_with_the_library();
  what_else();
}

}  // namespace mutilde::tutorial
