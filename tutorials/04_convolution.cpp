// # 4. A convolution is a matrix product
//
// Most of the arithmetic of a UNet is in convolutions of 3 x 3 pixels. On this page one is written
// three times: as the loops that define it, as a matrix product, and backwards. Each is compared
// with the library's `conv2d`.
#include <algorithm>

#include "core/ops/ops.h"
#include "tutorials/tutorial.h"

namespace mutilde::tutorial {
namespace {

// ## The definition
//
// The input $x$ is $[N, H, W, C]$, the weight $w$ is $[C_{out}, K, K, C]$: for each output channel
// a small picture of $K \times K$ pixels that slides over the input. At each place the products of
// all numbers that lie on each other are added up. The border is padded with $p$ zeros, which for
// $K = 3$ and $p = 1$ keeps the size:
//
// $$y_{n,i,j,o} = \sum_{a,b < K} \sum_{c < C} x_{n,\,i+a-p,\,j+b-p,\,c}\; w_{o,a,b,c}$$
//
// ```text
// seven loops and conv2d agree to 1e-12: yes
// ```
struct Sizes {
  int64_t N, H, W, C, C_out, K, p;
};
constexpr Sizes s = {2, 6, 5, 4, 3, 3, 1};

bool agree(const Tensor& a, const Tensor& b) {
  return max(abs(a.reshape(b.shape()) - b)).item() < 1e-12;
}

/// Calls body(offset of the pixel in x, or -1 in the padding; the row of the output pixel; the
/// place in the window) for all pixels that all output pixels look at.
template <class Body>
void for_each_look(const Body& body) {
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t i = 0; i < s.H; ++i)
      for (int64_t j = 0; j < s.W; ++j)
        for (int64_t a = 0; a < s.K; ++a)
          for (int64_t b = 0; b < s.K; ++b) {
            const int64_t h = i + a - s.p, w = j + b - s.p;
            const bool inside = h >= 0 && h < s.H && w >= 0 && w < s.W;
            const int64_t pixel = (n * s.H + h) * s.W + w, row = (n * s.H + i) * s.W + j;
            body(inside ? pixel * s.C : -1, row, a * s.K + b);
          }
}

Tensor by_loops(const Tensor& x, const Tensor& weight) {
  const Tensor y = Tensor::zeros({s.N, s.H, s.W, s.C_out}, DType::kFloat64);
  for_each_look([&](int64_t from, int64_t row, int64_t place) {
    if (from < 0) return;
    for (int64_t o = 0; o < s.C_out; ++o) {
      const double* w = weight.data<double>() + (o * s.K * s.K + place) * s.C;
      for (int64_t c = 0; c < s.C; ++c) {
        y.data<double>()[row * s.C_out + o] += x.data<double>()[from + c] * w[c];
      }
    }
  });
  return y;
}

// ## The matrix product
//
// Write down, for each output pixel, everything that it looks at, as one row: a *patch* of $K K C$
// numbers. All patches make a matrix $P$ of $N H W$ rows. The weight, $[C_{out}, K, K, C]$, is
// already a matrix of $C_{out}$ rows of $K K C$ numbers; it just has to be called one, by
// `reshape`. The sum in the definition runs over a row of each, so
//
// $$Y = P\, W^\top$$
//
// and a matrix product is what computers are best at. That is also why channels are last. Copying a
// patch, the $C$ numbers of a pixel are one piece, and the pixels beside it follow directly: $K$
// pieces of $K C$ numbers. With channels first it would be $C K$ pieces of $K$ numbers.
//
// ```text
// patches: a matrix of 60 rows and 36 columns
// patches times weight and conv2d agree to 1e-12: yes
// a patch of 3 x 3 pixels and 128 channels: 3 pieces of 384 numbers, or 384 pieces of 3
// ```
//
// The price: $P$ is $K^2 = 9$ times as large as $x$. The library therefore never makes it. It cuts
// the product into small tiles and reads each tile's part of $P$ from where it lies in $x$, which
// is easy because the pieces are so long (`core/cpu/conv.cpp`). The result is the same.
Tensor patches_of(const Tensor& x) {
  const Tensor patches = Tensor::zeros({s.N * s.H * s.W, s.K * s.K * s.C}, DType::kFloat64);
  for_each_look([&](int64_t from, int64_t row, int64_t place) {
    if (from < 0) return;  // the padding stays zero
    std::copy_n(x.data<double>() + from, s.C,
                patches.data<double>() + (row * s.K * s.K + place) * s.C);
  });
  return patches;
}

Tensor as_matrix(const Tensor& weight) { return weight.reshape({s.C_out, s.K * s.K * s.C}); }

// ## Backwards
//
// Given the cotangent $\bar Y$ of the output we want those of the weight and of the input. For a
// matrix product they are easy to find. Each $y_{mo} = \sum_k p_{mk} w_{ok}$, so by the chain rule
//
// $$\bar w_{ok} = \sum_m \bar y_{mo}\, p_{mk}, \quad \bar p_{mk} = \sum_o \bar y_{mo}\, w_{ok};
//   \qquad\text{that is,}\qquad \bar W = \bar Y^\top P, \quad \bar P = \bar Y\, W$$
//
// Two more matrix products: a training step costs three times what the forward pass does. From
// $\bar P$ to $\bar x$ is bookkeeping. A pixel was copied into up to nine patches, so its cotangent
// is the *sum* of theirs: the loop that gathered runs again and adds.
//
// ```text
// the weight's gradient and conv2d's agree to 1e-12: yes
// the input's gradient and conv2d's agree to 1e-12: yes
// ```
Tensor scatter(const Tensor& dpatches) {
  const Tensor dx = Tensor::zeros({s.N, s.H, s.W, s.C}, DType::kFloat64);
  for_each_look([&](int64_t to, int64_t row, int64_t place) {
    if (to < 0) return;
    const double* from = dpatches.data<double>() + (row * s.K * s.K + place) * s.C;
    for (int64_t c = 0; c < s.C; ++c) dx.data<double>()[to + c] += from[c];
  });
  return dx;
}

// ## The input's gradient is a convolution again
//
// There is another way to see it. Output pixel $i$ looks at input pixel $h = i + a - p$ through the
// weight at $a$. Seen from the input: pixel $h$ is looked at by $i = h - a + p$. With $K = 3$ and
// $p = 1$, put $a' = 2 - a$, and this is $i = h + a' - p$. So $\bar x$ is the convolution of
// $\bar y$ with the same weight, turned by half a turn ($a \to 2 - a$, $b \to 2 - b$), input and
// output channels exchanged. One fast kernel serves both directions, and in this library it does.
//
// ```text
// the turned convolution and the input's gradient agree to 1e-12: yes
// ```
Tensor turned(const Tensor& weight) {
  const Tensor out = Tensor::zeros({s.C, s.K, s.K, s.C_out}, DType::kFloat64);
  for (int64_t o = 0; o < s.C_out; ++o)
    for (int64_t place = 0; place < s.K * s.K; ++place)
      for (int64_t c = 0; c < s.C; ++c) {
        const int64_t opposite = s.K * s.K - 1 - place;
        out.data<double>()[(c * s.K * s.K + opposite) * s.C_out + o] =
            weight.data<double>()[(o * s.K * s.K + place) * s.C + c];
      }
  return out;
}

}  // namespace

void tutorial_main(const Options&) {
  Generator random(1);
  Tensor x = random.normal({s.N, s.H, s.W, s.C}, DType::kFloat64);
  Tensor weight = random.normal({s.C_out, s.K, s.K, s.C}, DType::kFloat64);
  const Tensor cotangent = random.normal({s.N, s.H, s.W, s.C_out}, DType::kFloat64);
  x.set_requires_grad(true);
  weight.set_requires_grad(true);
  const Tensor y = conv2d(x, weight, Tensor(), /*stride=*/1, s.p);
  y.backward(cotangent);
  const NoGrad no_grad;
  const auto say = [](const char* what, bool yes) {
    fmt::print("{} agree to 1e-12: {}\n", what, yes ? "yes" : "no");
  };

  say("seven loops and conv2d", agree(by_loops(x, weight), y));

  const Tensor patches = patches_of(x), w = as_matrix(weight);
  fmt::print("patches: a matrix of {} rows and {} columns\n", patches.size(0), patches.size(1));
  say("patches times weight and conv2d", agree(matmul(patches, w, false, true), y));
  const int64_t K = 3, C = 128;
  fmt::print(
      "a patch of {} x {} pixels and {} channels: {} pieces of {} numbers, or {} pieces of {}\n", K,
      K, C, K, K * C, C * K, K);

  const Tensor rows = cotangent.reshape({s.N * s.H * s.W, s.C_out});
  say("the weight's gradient and conv2d's",
      agree(matmul(rows, patches, true, false), weight.grad()));
  say("the input's gradient and conv2d's", agree(scatter(matmul(rows, w)), x.grad()));
  say("the turned convolution and the input's gradient",
      agree(conv2d(cotangent, turned(weight), Tensor(), 1, s.p), x.grad()));
}

}  // namespace mutilde::tutorial
