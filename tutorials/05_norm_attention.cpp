// # 5. Group norm and attention, forwards and backwards
//
// Between the convolutions of a UNet stand two kinds of layer that look far: group norm, in which
// every number moves the scale of many others, and attention, in which every pixel asks all others.
// Their backward passes are more than one line. Here both are derived, written in plain tensor
// operations, checked by finite differences (tutorial 3), and compared with the library's.
#include <cmath>
#include <numbers>

#include "core/gradcheck.h"
#include "core/ops/ops.h"
#include "tutorials/tutorial.h"

namespace mutilde::tutorial {
namespace {

using Tensors = std::vector<Tensor>;
using Function = std::function<Tensor(const Tensors&)>;

/// Are results and gradients alike? The cotangent is random.
void compare(const char* name, const Function& own, const Function& library, Tensors inputs) {
  for (Tensor& x : inputs) x.set_requires_grad(true);
  Tensors results;
  double most = 0;
  for (const Function& function : {own, library}) {
    Tensors found{function(inputs)};
    found[0].backward(Generator(1).normal(found[0].shape(), DType::kFloat64));
    for (const Tensor& x : inputs) {
      found.push_back(x.grad());
      x.set_grad({});
    }
    for (size_t i = 0; i < results.size(); ++i)
      most = std::max(most, max(abs(found[i].detach() - results[i].detach())).item());
    results = found;
  }
  fmt::print("{}: as the library's to 1e-12, forwards and backwards: {}; gradcheck: {}\n", name,
             most < 1e-12 ? "yes" : "no", gradcheck(own, inputs).passed ? "right" : "wrong");
}

// ## Group norm
//
// A deep network works best while its numbers keep a size near 1. Group norm sees to that: the
// channels of an image are parted into groups, and each group is shifted to mean 0 and scaled to
// variance 1, over its channels and all positions. With $M$ numbers in the group,
//
// $$\mu = \frac{1}{M} \sum_i x_i, \qquad \rho = \Big( \frac{1}{M} \sum_i (x_i - \mu)^2 +
//   \varepsilon \Big)^{-1/2}, \qquad z_i = \rho\, (x_i - \mu)$$
//
// and then $y_i = w_c\, z_i + b_c$ gives each channel $c$ a scale and a place of its own again, now
// learned. No other image is looked at, so that a batch of one will do (batch norm needs many).
//
// **Backwards.** The gradients of $w$ and $b$ are sums, and $\bar z_i = w_c\, \bar y_i$. For $x$ we
// need how each $z_i$ moves with each $x_j$, directly and through $\mu$ and $\rho$. These move by
//
// $$\frac{\partial \mu}{\partial x_j} = \frac{1}{M}, \qquad \frac{\partial \rho}{\partial x_j}
//   = -\frac{\rho^3}{2} \cdot \frac{2 (x_j - \mu)}{M} = -\frac{\rho^2 z_j}{M}$$
//
// (the sum of all $x_i - \mu$ is 0, so that in $\rho$ the moving $\mu$ does not count). With the
// product rule, and $x_i - \mu = z_i / \rho$,
//
// $$\frac{\partial z_i}{\partial x_j} = \rho\, \Big( \delta_{ij} - \frac{1}{M} -
//   \frac{z_i z_j}{M} \Big) \quad\Longrightarrow\quad
//   \bar x_j = \rho\, \Big( \bar z_j - \underbrace{\frac{1}{M} \sum_i \bar z_i}_{\text{mean}}
//   - z_j\, \underbrace{\frac{1}{M} \sum_i \bar z_i z_i}_{\text{mean}} \Big)$$
//
// ```text
// group norm: as the library's to 1e-12, forwards and backwards: yes; gradcheck: right
// ```
constexpr int64_t kGroups = 2;
constexpr double kNormEps = 1e-5;

Tensor own_group_norm(const Tensors& in) {
  const Tensor x = in[0].detach(), weight = in[1].detach();  // record() makes the only entry
  const Shape by_group{x.size(0), x.numel() / x.size(0) / x.size(-1), kGroups,
                       x.size(-1) / kGroups};
  const Shape shape = x.shape();
  const auto group_mean = [](const Tensor& v) { return mean(v, {1, 3}, /*keep_axes=*/true); };
  const Tensor centred = x.reshape(by_group) - group_mean(x.reshape(by_group));
  const Tensor rho = reciprocal(sqrt(group_mean(square(centred)) + kNormEps));
  const Tensor z = rho * centred;
  return record(
      "own_group_norm", z.reshape(shape) * weight + in[2].detach(), in,
      [=](const Tensor& dy) -> Tensors {
        const Tensor dz = (dy * weight).reshape(by_group);
        const Tensor dx = rho * (dz - group_mean(dz) - z * group_mean(dz * z));
        return {dx.reshape(shape), sum(dy * z.reshape(shape), {0, 1, 2}), sum(dy, {0, 1, 2})};
      });
}

// Two things to see in the formula. What the forward pass ignores, the backward pass does not send:
// shifting a group or scaling it changes no $z$, so $\bar x$ has no component along
// $(1, 1, \ldots)$ or along $z$. It is $\bar z$ less both. And the variance must be computed in two
// passes. The formula $\mathbb{E}[x^2] - \mathbb{E}[x]^2$ needs one, but subtracts two large
// numbers: for values near 4,000 that differ by 0.1, float32 has no digit of the result left.
//
// ```text
// the gradient's components along 1 and along z are below 1e-4 of its size: yes
// variance 0.01 about 4000, in float32: in two passes right to 1%, in one wrong
// ```
void two_things(const Tensors& in) {
  Tensor x = in[0].clone().set_requires_grad(true);
  const Tensor y = group_norm(x, kGroups, in[1], in[2]);
  y.backward(Generator(2).normal(y.shape(), y.dtype()));
  const Tensor plain = group_norm(in[0], kGroups, zeros_like(in[1]) + 1.0, zeros_like(in[2]));
  const Shape by_group{x.size(0), x.size(1) * x.size(2), kGroups, x.size(3) / kGroups};
  const Tensor dx = x.grad().reshape(by_group), z = plain.reshape(by_group);
  const double along =
      std::max(max(abs(sum(dx, {1, 3}))).item(), max(abs(sum(dx * z, {1, 3}))).item());
  fmt::print("the gradient's components along 1 and along z are below 1e-4 of its size: {}\n",
             along < 1e-4 * sum(abs(dx)).item() ? "yes" : "no");

  const Tensor v = 4000.0 + 0.1 * cos(std::numbers::pi * Tensor::arange(1000).to(DType::kFloat32));
  const double two = mean(square(v - mean(v))).item();
  const double one = (mean(square(v)) - square(mean(v))).item();
  const auto is_good = [](double variance) { return std::abs(variance - 0.01) < 1e-4; };
  fmt::print("variance 0.01 about 4000, in float32: in two passes {}, in one {}\n",
             is_good(two) ? "right to 1%" : "wrong", is_good(one) ? "right to 1%" : "wrong");
}

// ## Attention
//
// A convolution sees 3 x 3 pixels; attention sees all. Each position has three vectors of length
// $D$: a query $q$ (what do I look for?), a key $k$ (what am I?), a value $v$ (what do I give?).
// Position $i$ compares its query with all keys, turns the likenesses into shares that add up to 1,
// and takes the mean of the values with these shares:
//
// $$s_{ij} = \frac{q_i \cdot k_j}{\sqrt D}, \qquad a_{ij} = \frac{e^{s_{ij}}}{\sum_l e^{s_{il}}},
//   \qquad o_i = \sum_j a_{ij}\, v_j$$
//
// Why $\sqrt D$? A dot product of $D$ independent pairs of size 1 has variance $D$. Undivided, it
// would have the softmax choose one position, where its slope is next to nothing:
//
// ```text
// D = 64, 49 positions: logits of size 8.0, the largest share 0.80 on average
// divided by sqrt(D): logits of size 1.0, the largest share 0.13
// ```
//
// **Backwards**, in matrices, from the end. $O = A V$ is a matrix product, so (tutorial 4)
// $\bar V = A^\top \bar O$ and $\bar A = \bar O V^\top$. For the softmax,
// $\partial a_{ij} / \partial s_{il} = a_{ij} (\delta_{jl} - a_{il})$, and so
//
// $$\bar s_{ij} = a_{ij} \Big( \bar a_{ij} - \sum_l \bar a_{il}\, a_{il} \Big)$$
//
// in which the sum, one number a row, takes care that shares only move between positions. Last,
// $S = Q K^\top / \sqrt D$ gives $\bar Q = \bar S K / \sqrt D$ and
// $\bar K = \bar S^\top Q / \sqrt D$.
//
// ```text
// attention: as the library's to 1e-12, forwards and backwards: yes; gradcheck: right
// ```
Tensor shares(const Tensor& q, const Tensor& k) {
  return softmax(matmul(q, k, false, /*transpose_b=*/true) / std::sqrt(1.0 * q.size(-1)));
}

Tensor own_attention(const Tensors& in) {  // qkv: [N, T, 3 D], one head
  const Tensors parts = split(in[0].detach(), 3);
  const Tensor q = parts[0], k = parts[1], v = parts[2], a = shares(q, k);
  return record("own_attention", matmul(a, v), in, [=](const Tensor& d_o) -> Tensors {
    const Tensor dv = matmul(a, d_o, /*transpose_a=*/true), da = matmul(d_o, v, false, true);
    const Tensor ds = a * (da - sum(da * a, {2}, /*keep_axes=*/true)) / std::sqrt(1.0 * q.size(2));
    return {concat({matmul(ds, k), matmul(ds, q, true), dv})};
  });
}

void sizes_of_logits() {
  Generator random(3);
  const int64_t D = 64, T = 49;
  const Tensor q = random.normal({100, T, D}, DType::kFloat64);
  const Tensor s = matmul(q, random.normal({100, T, D}, DType::kFloat64), false, true);
  const auto size = [](const Tensor& x) { return std::sqrt(mean(square(x)).item()); };
  const auto share = [](const Tensor& logits) { return mean(max(softmax(logits), {2})).item(); };
  fmt::print("D = {}, {} positions: logits of size {:.1f}, the largest share {:.2f} on average\n",
             D, T, size(s), share(s));
  fmt::print("divided by sqrt(D): logits of size {:.1f}, the largest share {:.2f}\n", size(s / 8.0),
             share(s / 8.0));
}

// ## Without the matrix
//
// $A$ has $T \times T$ numbers for an image of $T$ pixels, and ours keeps it for the way back. The
// library does not. It keeps one number a row, $\ell_i = \log \sum_l e^{s_{il}}$, from which any
// part of $A$ is computed again as $e^{s_{ij} - \ell_i}$; and the sum in $\bar s_{ij}$ can be had
// from the output: $\sum_l \bar a_{il}\, a_{il} = \sum_l (\bar o_i \cdot v_l)\, a_{il} = \bar o_i
// \cdot o_i$.
//
// ```text
// 64 x 64 pixels: A is 64 MiB a head and image, the sums are 16 KiB
// the rows' sums of (dA * A) and of (dO * O) agree to 1e-12: yes
// ```
//
// One thing is left to know. Nothing in attention says where a position is: permute the pixels, and
// the output is permuted alike. Place comes from the convolutions around it. So let an image attend
// to itself by looks alone, patches of 4 x 4 pixels being their own queries and keys:
//
// ```text
// pixels in another order, outputs in that order, to 1e-12: yes
// ```
//
// ![An image, and the share that each patch gets from the one in row 1, column 1, and from two others](05_attention.png)
void without_the_matrix(const Tensor& qkv, const Options& options) {
  const Tensors p = split(qkv, 3);
  const Tensor a = shares(p[0], p[1]), o = matmul(a, p[2]);
  const Tensor d_o = Generator(4).normal(o.shape(), o.dtype()), da = matmul(d_o, p[2], false, true);
  fmt::print("64 x 64 pixels: A is {} MiB a head and image, the sums are {} KiB\n",
             4096 * 4096 * sizeof(float) >> 20, 4096 * sizeof(float) >> 10);
  fmt::print("the rows' sums of (dA * A) and of (dO * O) agree to 1e-12: {}\n",
             max(abs(sum(da * a, {2}) - sum(d_o * o, {2}))).item() < 1e-12 ? "yes" : "no");

  const Tensor order = Generator(5).permutation(qkv.size(1));
  const auto reordered = [&](const Tensor& x) {  // of the first image alone
    return embedding(x.slice(0, 1).reshape({x.size(1), x.size(2)}), order);
  };
  const Tensor in_order = reordered(qkv).reshape({1, qkv.size(1), qkv.size(2)});
  fmt::print("pixels in another order, outputs in that order, to 1e-12: {}\n",
             max(abs(attention(in_order, 1) - reordered(o))).item() < 1e-12 ? "yes" : "no");

  const Tensor image = images(1);  // 7 x 7 patches of 4 x 4 pixels
  const Tensor patches = permute(image.reshape({7, 4, 7, 4}), {0, 2, 1, 3}).reshape({49, 16});
  const Tensor centred = patches - mean(patches, {0}, /*keep_axes=*/true);
  const Tensor looks = 6.0 * centred / sqrt(sum(square(centred), {1}, /*keep_axes=*/true));
  const Tensor maps = Tensor::zeros({4, 28, 28, 1}, DType::kFloat64);
  maps.slice(0, 1).copy_(image);
  int64_t column = 1;
  for (int64_t patch : {8, 31, 38}) {
    const Tensor row = shares(looks.slice(patch, patch + 1), looks).reshape({1, 7, 7, 1});
    maps.slice(column, column + 1).copy_(upsample_nearest(1.6 * row / max(row) - 1.0, 4));
    ++column;
  }
  save(options, "05_attention.png",
       labelled_rows({"image", "from 1, 1", "from 4, 3", "from 5, 3"}, {{"", maps}}, 6));
}

}  // namespace

void tutorial_main(const Options& options) {
  Generator random(6);
  const auto normal = [&](const Shape& shape) { return random.normal(shape, DType::kFloat64); };
  const Tensors norm_inputs = {normal({2, 3, 3, 6}), normal({6}), normal({6})};
  compare(
      "group norm", own_group_norm,
      [](const Tensors& in) { return group_norm(in[0], kGroups, in[1], in[2], kNormEps); },
      norm_inputs);
  two_things(norm_inputs);
  sizes_of_logits();
  const Tensor qkv = normal({2, 5, 3 * 4});
  compare("attention", own_attention, [](const Tensors& in) { return attention(in[0], 1); }, {qkv});
  without_the_matrix(qkv, options);
}

}  // namespace mutilde::tutorial
