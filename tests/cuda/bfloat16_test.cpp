// Ops on activations in bfloat16, against the CPU's float32 on the same numbers. Arithmetic is float32 on both
// sides, so that they differ by its rounding, and where a result is stored in bfloat16 by that.
#include <cmath>
#include <functional>

#include <gtest/gtest.h>

#include "core/op_cases.h"
#include "core/ops/ops.h"
#include "core/precision.h"
#include "cuda/devices.h"
#include "nn/optimizer.h"

namespace mutilde {
namespace {

using Op = std::function<Tensor(const std::vector<Tensor>&)>;

struct Input {
  Shape shape;
  bool is_activation = true;  // else a parameter
};

/// The op's result, and its gradients for a random cotangent, all in bfloat16's digits.
std::vector<Tensor> run(const Op& op, const std::vector<Input>& inputs, bool short_on_gpu) {
  std::vector<Tensor> x;
  for (size_t i = 0; i < inputs.size(); ++i) {
    Tensor one = uniform(inputs[i].shape, -1, 1, i + 1).to(DType::kBFloat16);
    if (!short_on_gpu || !inputs[i].is_activation) one = one.to(DType::kFloat32);
    if (short_on_gpu) one = one.to(Device::cuda());
    x.push_back(one.set_requires_grad(true));
  }
  const Tensor out = op(x);
  const Tensor cotangent = uniform(out.shape(), -1, 1, 99).to(DType::kBFloat16);
  out.backward(cotangent.to(out.dtype()).to(out.device()));
  std::vector<Tensor> results{out.detach()};
  for (const Tensor& one : x) results.push_back(one.grad());
  return results;
}

/// Sums are of at most `terms` numbers, none of which is over `size`.
void check(const char* name, const std::vector<Input>& inputs, double terms, const Op& op,
           double size = 1) {
  use_cuda();
  const auto actual = run(op, inputs, true), expected = run(op, inputs, false);
  for (size_t r = 0; r < actual.size(); ++r) {
    const bool is_short = r == 0 || inputs[r - 1].is_activation;
    ASSERT_EQ(actual[r].dtype(), is_short ? DType::kBFloat16 : DType::kFloat32) << name << " " << r;
    const auto a = actual[r].to_vector<double>(), b = expected[r].to_vector<double>();
    ASSERT_EQ(a.size(), b.size()) << name << " " << r;
    for (size_t i = 0; i < a.size(); ++i) {
      // Half of a bfloat16's last bit, or all of it where the two sums lie on either side of the middle.
      const double rounding = is_short ? 0x1p-8 * std::abs(b[i]) : 0;
      ASSERT_NEAR(a[i], b[i], rounding + terms * size * 0x1p-23)
          << name << ", result " << r << ", number " << i;
    }
  }
}

TEST(CudaBfloat16, ElementwiseOps) {
  const std::vector<Input> two{{{3, 5, 8}}, {{3, 5, 8}}};
  check("add", two, 1, [](const auto& x) { return x[0] + x[1]; });
  check("mul", two, 1, [](const auto& x) { return x[0] * x[1]; });
  check("broadcast add", {{{2, 3, 3, 10}}, {{2, 1, 1, 10}}}, 9,
        [](const auto& x) { return x[0] + x[1]; });
  check("silu", {{{7, 9}}}, 4, [](const auto& x) { return silu(x[0]); });
  check(
      "affine", {{{7, 8}}}, 2, [](const auto& x) { return affine(x[0], 0.3, 2); }, 2);
  check("clamp", {{{5, 16}}}, 1, [](const auto& x) { return clamp(x[0], -0.5, 0.25); });
  check("dropout", {{{5, 18}}}, 1, [](const auto& x) { return dropout(x[0], 0.5, {3, 1, 0}); });
  check("used twice", {{{4, 8}}}, 2, [](const auto& x) { return x[0] + x[0]; });
}

TEST(CudaBfloat16, LayoutAndResampling) {
  for (const int64_t C : {8, 24, 5}) {
    const std::vector<Input> image{{{2, 4, 6, C}}};
    check("concat", {{{2, 3, C}}, {{2, 3, 16}}, {{2, 3, 2 * C}}}, 1, [](const auto& x) {
      return concat({x[0], x[1], x[2]});
    });
    check("slice_channels", image, 1,
          [C](const auto& x) { return slice_channels(x[0], C / 2, C); });
    check("upsample_nearest", image, 4, [](const auto& x) { return upsample_nearest(x[0], 2); });
    check("avg_pool2d", image, 4, [](const auto& x) { return avg_pool2d(x[0], 2); });
  }
}

TEST(CudaBfloat16, GroupNorm) {
  // Channels in packs of 8 and not; positions of one chunk, of two, of two and of four that are not of one size; as
  // many groups as leave one chunk alone; one image.
  for (const auto [N, P, C, groups] : {std::array<int64_t, 4>{2, 16, 64, 32},
                                       {1, 1, 32, 4},
                                       {3, 77, 40, 5},
                                       {2, 131, 32, 32},
                                       {1, 2100, 8, 2},
                                       {2, 277, 64, 32},
                                       {1, 525, 64, 4},
                                       {1, 300, 1024, 1024},
                                       {2, 9, 36, 9}}) {
    const Shape x{N, P, C};
    // Every dx is a sum over its group, of terms divided by the deviation of numbers in [-1, 1].
    const double terms = static_cast<double>(N * P * C / groups) + 16;
    check(
        "group_norm", {{x}, {{C}, false}, {{C}, false}}, terms,
        [groups = groups](const auto& in) { return group_norm(in[0], groups, in[1], in[2]); }, 16);
    check(
        "group_norm_silu", {{x}, {{C}, false}, {{C}, false}, {{N, 2 * C}, false}}, terms,
        [groups = groups](const auto& in) {
          return group_norm_silu(in[0], groups, in[1], in[2], in[3]);
        },
        16);
  }
}

TEST(CudaBfloat16, ProductsOfFactorsInBfloat16) {
  for (const auto [C, C_out, stride] : {std::array<int64_t, 3>{3, 5, 1}, {16, 8, 1}, {8, 16, 2}}) {
    const std::vector<Input> inputs{{{2, 6, 5, C}}, {{C_out, 3, 3, C}, false}, {{C_out}, false}};
    check("conv2d", inputs, 9.0 * static_cast<double>(std::max(C, C_out)) * 60,
          [stride = stride](const auto& x) { return conv2d(x[0], x[1], x[2], stride, 1); });
  }
  for (const auto [M, K, N] : {std::array<int64_t, 3>{5, 7, 3}, {33, 24, 40}})
    check("linear", {{{M, K}}, {{N, K}, false}, {{N}, false}},
          static_cast<double>((M + K + N) * 41),
          [](const auto& x) { return linear(x[0], x[1], x[2]); });
}

TEST(CudaBfloat16, SumsOfColumnsAreOfFloat32) {
  // The gradient of a bias, of one chunk of rows and of several.
  for (const auto [rows, C] : {std::array<int64_t, 2>{3, 8}, {5000, 16}, {700, 136}, {9, 5}}) {
    check(
        "bias", {{{rows, C}}, {{8, C}, false}, {{8}, false}}, static_cast<double>(rows * 2 + C),
        [](const auto& x) { return linear(x[0], x[1], x[2]); }, 4);
  }
}

/// All elements of a parameter's copy are its own, rounded.
void expect_true_copy(const Tensor& parameter) {
  const Tensor rounded = parameter.detach().to(DType::kBFloat16);
  EXPECT_EQ(parameter.in_bfloat16().to_vector<float>(), rounded.to_vector<float>());
}

TEST(CudaBfloat16, AParametersCopyFollowsIt) {
  use_cuda();
  const Tensor values = uniform({3, 5}, -1, 1, 1).to(DType::kFloat32).to(Device::cuda());
  AdamW optimizer({{"weight", values.clone().set_requires_grad(true), {}}}, AdamWOptions{});
  const Tensor weight = optimizer.parameters().front().value;
  EXPECT_FALSE(weight.has_bfloat16_copy());
  expect_true_copy(weight);
  EXPECT_TRUE(weight.has_bfloat16_copy());
  const void* place = weight.in_bfloat16().raw();
  weight.set_grad(uniform({3, 5}, -1, 1, 2).to(DType::kFloat32).to(Device::cuda()));
  const std::vector<float> before = weight.in_bfloat16().to_vector<float>();
  optimizer.step(0.3);  // writes the copy too
  EXPECT_EQ(weight.in_bfloat16().raw(), place);
  EXPECT_NE(weight.in_bfloat16().to_vector<float>(), before);
  expect_true_copy(weight);
  weight.copy_(values);
  EXPECT_FALSE(weight.has_bfloat16_copy());
  expect_true_copy(weight);
  // Of a part there is none to keep, and a product does not rely on one; a view of the whole shares it.
  expect_true_copy(weight.detach().slice(1, 3));
  const Tensor x = uniform({9, 5}, -1, 1, 3).to(DType::kBFloat16).to(Device::cuda());
  EXPECT_EQ(linear(x, weight.detach().slice(1, 3), {}).to_vector<float>(),
            linear(x, weight.detach().slice(1, 3).clone(), {}).to_vector<float>());
  EXPECT_EQ(x.in_bfloat16().raw(), x.raw());
  EXPECT_EQ(weight.detach().reshape({15}).in_bfloat16().raw(), weight.in_bfloat16().raw());
}

TEST(CudaBfloat16, TheCpuRefusesIt) {
  const Tensor x = uniform({2, 3, 3, 4}).to(DType::kBFloat16);
  EXPECT_THROW(silu(x), DTypeError);
  EXPECT_THROW(conv2d(x, uniform({2, 1, 1, 4}).to(DType::kFloat32), {}), DTypeError);
}

TEST(CudaBfloat16, ParametersAreFloat32) {
  use_cuda();
  const Tensor x = uniform({2, 3, 3, 4}).to(DType::kBFloat16).to(Device::cuda());
  const Tensor weight = uniform({2, 1, 1, 4}).to(DType::kFloat32).to(Device::cuda());
  EXPECT_THROW(conv2d(x, weight.to(DType::kBFloat16), {}), DTypeError);
  EXPECT_EQ(conv2d(x, weight, {}).dtype(), DType::kBFloat16);
}

}  // namespace
}  // namespace mutilde
