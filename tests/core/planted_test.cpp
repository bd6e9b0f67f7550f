// The mistakes that are really made in the backward of each family of ops: gradcheck must reject
// them. What holds for all rows of the table is in planted_rows_test.cpp.
#include "core/planted.h"

#include <cmath>

namespace mutilde {
namespace {

TEST(PlantedElementwise, TanhWithoutTheSquareIsRejected) {
  expect_only_right_passes([](const Tensors& in) { return tanh(in[0]); }, {uniform({3, 4})},
                           [](const Tensors&, const Tensor& y, const Tensor& cotangent) -> Tensors {
                             return {cotangent * (1.0 - y)};
                           });
}

TEST(PlantedElementwise, SiluWithoutItsSecondTermIsRejected) {
  expect_only_right_passes(
      [](const Tensors& in) { return silu(in[0]); }, {uniform({3, 4})},
      [](const Tensors& in, const Tensor&, const Tensor& cotangent) -> Tensors {
        return {cotangent * sigmoid(in[0])};
      });
}

TEST(PlantedElementwise, MulWithItsFactorsSwappedIsRejected) {
  expect_only_right_passes(
      [](const Tensors& in) { return in[0] * in[1]; },
      {uniform({3, 4}, -2, 2, 1), uniform({3, 4}, -2, 2, 2)},
      [](const Tensors& in, const Tensor&, const Tensor& cotangent) -> Tensors {
        return {cotangent * in[0], cotangent * in[1]};
      });
}

TEST(PlantedElementwise, ABroadcastThatKeepsOneRowOfItsGradientIsRejected) {
  expect_only_right_passes([](const Tensors& in) { return in[0] + in[1]; },
                           {uniform({3, 4}, -2, 2, 1), uniform({4}, -2, 2, 2)},
                           [](const Tensors&, const Tensor&, const Tensor& cotangent) -> Tensors {
                             return {cotangent, cotangent.slice(0, 1).reshape({4})};
                           });
}

TEST(PlantedElementwise, DropoutWithoutItsMaskIsRejected) {
  expect_only_right_passes(
      [](const Tensors& in) {
        return dropout(in[0], 0.5, {3, 1, 0});
      },
      {uniform_off({0}, {4, 5})},
      [](const Tensors&, const Tensor&, const Tensor& cotangent) -> Tensors {
        return {cotangent * 2.0};
      });
}

TEST(PlantedReductions, MeanWithoutItsDivisorIsRejected) {
  expect_only_right_passes(
      [](const Tensors& in) { return mean(in[0], {1}, true); }, {uniform({3, 4})},
      [](const Tensors& in, const Tensor&, const Tensor& cotangent) -> Tensors {
        return {broadcast_to(cotangent, in[0].shape())};
      });
}

TEST(PlantedReductions, MaxThatTellsEveryElementIsRejected) {
  expect_only_right_passes(
      [](const Tensors& in) { return max(in[0], {1}, true); }, {all_different({3, 4})},
      [](const Tensors& in, const Tensor&, const Tensor& cotangent) -> Tensors {
        return {broadcast_to(cotangent, in[0].shape())};
      });
}

TEST(PlantedLayout, PermuteByItsOwnAxesInsteadOfTheInverseIsRejected) {
  expect_only_right_passes(
      [](const Tensors& in) {
        return permute(in[0], {1, 2, 0});
      },
      {uniform({3, 3, 3})},
      [](const Tensors&, const Tensor&, const Tensor& cotangent) -> Tensors {
        return {permute(cotangent, {1, 2, 0})};
      });
}

TEST(PlantedLayout, ConcatWithItsPartsSwappedIsRejected) {
  expect_only_right_passes(
      [](const Tensors& in) { return concat(in); },
      {uniform({3, 2}, -2, 2, 1), uniform({3, 2}, -2, 2, 2)},
      [](const Tensors&, const Tensor&, const Tensor& cotangent) -> Tensors {
        return {slice_channels(cotangent, 2, 4), slice_channels(cotangent, 0, 2)};
      });
}

TEST(PlantedMatmul, AMissingTransposeIsRejected) {
  expect_only_right_passes(
      [](const Tensors& in) { return matmul(in[0], in[1]); },
      {uniform({3, 3}, -2, 2, 1), uniform({3, 3}, -2, 2, 2)},
      [](const Tensors& in, const Tensor&, const Tensor& cotangent) -> Tensors {
        return {matmul(cotangent, in[1]), matmul(in[0], cotangent, true)};
      });
}

TEST(PlantedMatmul, LinearWithAMeanForItsBiasIsRejected) {
  const auto op = [](const Tensors& in) { return linear(in[0], in[1], in[2]); };
  expect_only_right_passes(
      op, {uniform({3, 5}, -2, 2, 1), uniform({4, 5}, -2, 2, 2), uniform({4}, -2, 2, 3)},
      [op](const Tensors& in, const Tensor&, const Tensor& cotangent) -> Tensors {
        const Tensors right = right_backward(op, in, cotangent);
        return {right[0], right[1], mean(cotangent, {0})};
      });
}

// The kernel turned by 180 degrees: what is right for convolutions in the signal processor's sense.
Tensor flipped(const Tensor& weight) {
  const Array from(weight);
  Array to(weight.shape());
  for (int64_t i = 0; i < weight.numel(); ++i) {
    const int64_t C = weight.size(3), kW = weight.size(2), kH = weight.size(1);
    const int64_t c = i % C, w = i / C % kW, h = i / (C * kW) % kH, c_out = i / (C * kW * kH);
    to(c_out, kH - 1 - h, kW - 1 - w, c) = from[i];
  }
  return Tensor::from(weight.shape(), to.values);
}

TEST(PlantedConv, AFlippedKernelIsRejectedInBothGradients) {
  const auto op = [](const Tensors& in) { return conv2d(in[0], in[1], {}, 1, 1); };
  const Tensors inputs = {uniform({2, 4, 5, 3}, -2, 2, 1), uniform({2, 3, 3, 3}, -2, 2, 2)};
  expect_only_right_passes(
      op, inputs, [op](const Tensors& in, const Tensor&, const Tensor& cotangent) {
        Tensors gradients = right_backward(op, in, cotangent);
        gradients[0] = right_backward(op, {in[0], flipped(in[1])}, cotangent)[0];
        return gradients;
      });
  expect_only_right_passes(op, inputs,
                           [op](const Tensors& in, const Tensor&, const Tensor& cotangent) {
                             Tensors gradients = right_backward(op, in, cotangent);
                             gradients[1] = flipped(gradients[1]);
                             return gradients;
                           });
}

TEST(PlantedConv, AGradientThatForgetsThePaddingIsRejected) {
  const auto op = [](const Tensors& in) { return conv2d(in[0], in[1], {}, 1, 1); };
  expect_only_right_passes(op, {uniform({2, 4, 5, 3}, -2, 2, 1), uniform({2, 3, 3, 3}, -2, 2, 2)},
                           [op](const Tensors& in, const Tensor&, const Tensor& cotangent) {
                             Tensors gradients = right_backward(op, in, cotangent);
                             // One pixel off: row h of the image gets what row h - 1 should.
                             const Tensor rows = permute(gradients[0], {1, 0, 2, 3});
                             const Tensor shifted = zeros_like(rows);
                             shifted.slice(1, 4).copy_(rows.slice(0, 3).clone());
                             gradients[0] = permute(shifted, {1, 0, 2, 3});
                             return gradients;
                           });
}

// dx of a group norm in its three terms, for one group over all channels and positions (weight 1):
// dx = rstd (dy - mean(dy) - x_hat mean(dy x_hat)).
Tensor group_norm_dx(const Tensor& x, const Tensor& dy, bool mean_term, bool variance_term) {
  const Tensor centred = x - mean(x, {1, 2}, true);
  const Tensor rstd = 1.0 / sqrt(mean(square(centred), {1, 2}, true) + 1e-5);
  const Tensor x_hat = centred * rstd;
  Tensor dx = dy;
  if (mean_term) dx = dx - mean(dy, {1, 2}, true);
  if (variance_term) dx = dx - x_hat * mean(dy * x_hat, {1, 2}, true);
  return dx * rstd;
}

Tensor one_group_norm(const Tensors& in) {
  const Tensor weight = Tensor::full({4}, 1, DType::kFloat64), bias = zeros_like(weight);
  return group_norm(in[0], 1, weight, bias);
}

TEST(PlantedNorm, GroupNormWithoutEitherOfItsTermsIsRejected) {
  const Tensor x = uniform({2, 5, 4});
  const auto with_terms = [&](bool mean_term, bool variance_term) {
    const auto backward = [=](const Tensors& in, const Tensor&, const Tensor& dy) -> Tensors {
      return {group_norm_dx(in[0], dy, mean_term, variance_term)};
    };
    return gradcheck(with_backward(one_group_norm, backward), wanted({x})).passed;
  };
  EXPECT_TRUE(with_terms(true, true));  // the planted formula is right when whole
  EXPECT_FALSE(with_terms(false, true));
  EXPECT_FALSE(with_terms(true, false));
  EXPECT_FALSE(with_terms(false, false));
}

TEST(PlantedNorm, ScaleShiftWithoutTheOneIsRejected) {
  const Tensor weight = Tensor::full({4}, 1, DType::kFloat64), bias = zeros_like(weight);
  const auto op = [=](const Tensors& in) { return group_norm_silu(in[0], 2, weight, bias, in[1]); };
  const Tensors inputs = {uniform({2, 5, 4}, -2, 2, 1), uniform({2, 8}, -0.8, 0.8, 2)};
  expect_only_right_passes(op, inputs,
                           [=](const Tensors& in, const Tensor&, const Tensor& cotangent) {
                             Tensors gradients = right_backward(op, in, cotangent);
                             const Tensor scale = slice_channels(in[1], 0, 4).reshape({2, 1, 4});
                             gradients[0] = gradients[0] * scale / (scale + 1.0);
                             return gradients;
                           });
}

TEST(PlantedNorm, SoftmaxWithoutTheRowSumIsRejected) {
  expect_only_right_passes([](const Tensors& in) { return softmax(in[0]); }, {uniform({3, 5})},
                           [](const Tensors&, const Tensor& y, const Tensor& cotangent) -> Tensors {
                             return {y * cotangent};
                           });
}

// Attention of one head of one image, by hand: with P = softmax(q k^T / sqrt(d)), O = P v,
// dS = P * (dO v^T - D), D the row sums of dO * O.
Tensor attention_dqkv(const Tensor& qkv, const Tensor& out, const Tensor& dout, bool d_term,
                      bool is_scaled) {
  const Tensors parts = split(qkv, 3);
  const Tensor &q = parts[0], &k = parts[1], &v = parts[2];
  const double scale = 1 / std::sqrt(static_cast<double>(q.size(-1)));
  const Tensor P = softmax(matmul(q, k, false, true) * scale);
  Tensor dP = matmul(dout, v, false, true);
  if (d_term) dP = dP - sum(dout * out, {-1}, true);
  const Tensor dS = P * dP * (is_scaled ? scale : 1);
  return concat({matmul(dS, k), matmul(dS, q, true), matmul(P, dout, true)});
}

TEST(PlantedAttention, WithoutTheDTermOrTheScaleIsRejected) {
  const auto op = [](const Tensors& in) { return attention(in[0], 1); };
  const auto with_terms = [&](bool d_term, bool is_scaled) {
    const auto backward = [=](const Tensors& in, const Tensor& out, const Tensor& dout) -> Tensors {
      return {attention_dqkv(in[0], out, dout, d_term, is_scaled)};
    };
    return gradcheck(with_backward(op, backward), wanted({uniform({2, 5, 12})})).passed;
  };
  EXPECT_TRUE(with_terms(true, true));  // the planted formula is right when whole
  EXPECT_FALSE(with_terms(false, true));
  EXPECT_FALSE(with_terms(true, false));
}

TEST(PlantedResample, UpsamplingThatAveragesInsteadOfSummingIsRejected) {
  expect_only_right_passes([](const Tensors& in) { return upsample_nearest(in[0], 2); },
                           {uniform({2, 3, 4, 2})},
                           [](const Tensors&, const Tensor&, const Tensor& cotangent) -> Tensors {
                             return {avg_pool2d(cotangent, 2)};
                           });
}

TEST(PlantedResample, PoolingWithoutItsDivisorIsRejected) {
  expect_only_right_passes([](const Tensors& in) { return avg_pool2d(in[0], 2); },
                           {uniform({2, 4, 6, 2})},
                           [](const Tensors&, const Tensor&, const Tensor& cotangent) -> Tensors {
                             return {upsample_nearest(cotangent, 2)};
                           });
}

TEST(PlantedResample, ResizingBackInsteadOfTransposingIsRejected) {
  expect_only_right_passes([](const Tensors& in) { return resize_bilinear(in[0], 6, 8); },
                           {uniform({2, 3, 4, 2})},
                           [](const Tensors&, const Tensor&, const Tensor& cotangent) -> Tensors {
                             return {resize_bilinear(cotangent, 3, 4)};
                           });
}

TEST(PlantedEmbedding, ARepeatedIndexThatOverwritesIsRejected) {
  const Tensor index = Tensor::from<int64_t>({3}, {1, 2, 1});
  expect_only_right_passes(
      [=](const Tensors& in) { return embedding(in[0], index); }, {uniform({4, 3})},
      [=](const Tensors& in, const Tensor&, const Tensor& cotangent) -> Tensors {
        const Tensor dweight = zeros_like(in[0]);
        for (int64_t i = 0; i < 3; ++i) {
          const int64_t row = index.values<int64_t>()[static_cast<size_t>(i)];
          dweight.slice(row, row + 1).copy_(cotangent.slice(i, i + 1));
        }
        return {dweight};
      });
}

}  // namespace
}  // namespace mutilde
