#include <algorithm>
#include <cmath>

#include "core/op_cases.h"
#include "core/ops/ops.h"

namespace mutilde {

namespace {

constexpr double kNormEps = 1e-5;

// The definition, group by group: mean, biased variance, and what follows for each element.
Array normalise(const Arrays& in, int64_t groups, bool silu) {
  const Array& x = in[0];
  const int64_t C = x.size(-1), N = x.size(0), P = x.shape.product(1, x.shape.rank() - 1);
  const int64_t width = C / groups;  // channels of a group
  Array out(x.shape);
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t g = 0; g < groups; ++g) {
      const auto at = [=](int64_t i) { return (n * P + i / width) * C + g * width + i % width; };
      double mean = 0, variance = 0;
      for (int64_t i = 0; i < P * width; ++i) mean += x[at(i)] / static_cast<double>(P * width);
      for (int64_t i = 0; i < P * width; ++i) {
        variance += std::pow(x[at(i)] - mean, 2) / static_cast<double>(P * width);
      }
      for (int64_t i = 0; i < P * width; ++i) {
        const int64_t c = g * width + i % width;
        double y = (x[at(i)] - mean) / std::sqrt(variance + kNormEps) * in[1][c] + in[2][c];
        if (in.size() > 3) y = y * (1 + in[3](n, c)) + in[3](n, C + c);
        out[at(i)] = silu ? y / (1 + std::exp(-y)) : y;
      }
    }
  }
  return out;
}

// Group norm as its formula in plain ops.
Tensor plain_group_norm(const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias) {
  const int64_t N = x.size(0), C = x.size(-1);
  const Tensor grouped =
      x.reshape({N, x.numel() / std::max<int64_t>(N * C, 1), groups, C / groups});
  const Tensor centred = grouped - mean(grouped, {1, 3}, true);
  const Tensor variance = mean(square(centred), {1, 3}, true);
  return (centred / sqrt(variance + kNormEps)).reshape(x.shape()) * weight + bias;
}

OpCase plain_case(const std::string& name, const Shape& shape, int64_t groups, double offset = 0) {
  const int64_t C = shape[-1];
  return {
      .name = "GroupNorm" + name,
      .inputs = {uniform(shape, offset - 2, offset + 2, 1), uniform({C}, 0.5, 2, 2),
                 uniform({C}, -1, 1, 3)},
      .op = [=](const Tensors& in) { return group_norm(in[0], groups, in[1], in[2], kNormEps); },
      .reference = [=](const Arrays& in) { return normalise(in, groups, false); },
      .composition =
          [=](const Tensors& in) { return plain_group_norm(in[0], groups, in[1], in[2]); },
      // The mean of values near `offset` carries that many times their round-off.
      .terms = std::max(static_cast<double>(shape.numel() / C), 16.0) + offset,
      .batched = {0}};
}

OpCase fused_case(const std::string& name, const Shape& shape, int64_t groups,
                  bool has_scale_shift) {
  OpCase row = plain_case("Silu" + name, shape, groups);
  const int64_t N = shape[0], C = shape[-1];
  if (has_scale_shift) {
    row.inputs.push_back(uniform({N, 2 * C}, -0.8, 0.8, 4));
    row.batched.push_back(3);
  }
  row.op = [=](const Tensors& in) {
    return group_norm_silu(in[0], groups, in[1], in[2], has_scale_shift ? in[3] : Tensor{},
                           kNormEps);
  };
  row.reference = [=](const Arrays& in) { return normalise(in, groups, true); };
  row.composition = [=](const Tensors& in) {
    const Tensor y = group_norm(in[0], groups, in[1], in[2], kNormEps);
    if (!has_scale_shift) return silu(y);
    const Tensors halves = split(in[3].reshape({in[3].size(0), 1, 2 * C}), 2);
    const Tensor flat = y.reshape({y.size(0), shape.product(1, shape.rank() - 1), C});
    return silu(flat * (halves[0] + 1.0) + halves[1]).reshape(y.shape());
  };
  return row;
}

OpCase softmax_case(const std::string& name, const Tensor& x) {
  return {.name = "Softmax" + name,
          .inputs = {x},
          .op = [](const Tensors& in) { return softmax(in[0]); },
          .reference =
              [](const Arrays& in) {
                Array out(in[0].shape);
                const int64_t C = out.size(-1);
                for (int64_t row = 0; row < out.numel(); row += C) {
                  const double largest =
                      *std::max_element(&in[0].values[static_cast<size_t>(row)],
                                        &in[0].values[static_cast<size_t>(row)] + C);
                  double total = 0;
                  for (int64_t c = 0; c < C; ++c) total += std::exp(in[0][row + c] - largest);
                  for (int64_t c = 0; c < C; ++c)
                    out[row + c] = std::exp(in[0][row + c] - largest) / total;
                }
                return out;
              },
          .composition =
              [](const Tensors& in) {
                const Tensor weights = exp(in[0] - max(in[0], {-1}, true).detach());
                return weights / sum(weights, {-1}, true);
              },
          .terms = static_cast<double>(x.size(-1)),
          .batched = {0}};
}

}  // namespace

std::vector<OpCase> norm_cases() {
  // A softmax of 1 is a constant: its gradient is zero, so there is nothing to check.
  OpCase one_class = softmax_case("OfOneClass", uniform({3, 1}));
  one_class.differentiable = false;
  return {plain_case("", {2, 3, 2, 6}, 3), plain_case("OneGroup", {2, 3, 2, 5}, 1),
          plain_case("AGroupAChannel", {1, 3, 3, 4}, 4), plain_case("Vectors", {3, 6}, 2),
          plain_case("Sequence", {2, 5, 6}, 2), plain_case("BatchOfOne", {1, 4, 3, 6}, 2),
          plain_case("32Groups", {2, 5, 3, 96}, 32), plain_case("Wide", {2, 9, 8, 64}, 32),
          // A variance as E[x^2] - E[x]^2 would lose 1e6 times the round-off here.
          plain_case("FarFromZero", {2, 4, 3, 6}, 2, 1000), fused_case("", {2, 3, 2, 6}, 3, false),
          fused_case("ScaleShift", {2, 3, 2, 6}, 3, true),
          fused_case("BatchOfOne", {1, 4, 3, 6}, 2, true),
          fused_case("ScaleShiftVectors", {3, 6}, 2, true),
          fused_case("Wide", {2, 9, 8, 64}, 32, true), softmax_case("", uniform({3, 7})),
          softmax_case("OfAVector", uniform({5})),
          softmax_case("Batched", uniform({2, 3, 17}, -3, 3)),
          softmax_case("OfLargeNumbers", uniform({3, 7}, 990, 1000)),
          softmax_case("Long", uniform({2, 1031}, -3, 3)), one_class};
}

}  // namespace mutilde
