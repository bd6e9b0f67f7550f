// Our ops against PyTorch's numbers (tests/data/nn_ops.safetensors: PyTorch 1.13.1 on a CPU,
// float32). There images are [N, C, H, W] and convolution weights [C_out, C, kH, kW].
//
// Tolerances are float32 round-off with a small margin: of outputs 1e-5 and of gradients 1e-4 of
// the tensor's maximum.
#include <algorithm>
#include <cmath>
#include <optional>

#include <gtest/gtest.h>

#include "core/op_cases.h"
#include "core/ops/ops.h"
#include "core/safetensors.h"

namespace mutilde {
namespace {

const SafetensorsFile& reference() {
  static const SafetensorsFile kFile(MUTILDE_TEST_DATA "/nn_ops.safetensors");
  return kFile;
}

void expect_close(const Tensor& actual, const Tensor& expected, double rtol,
                  const std::string& what) {
  ASSERT_EQ(actual.shape(), expected.shape()) << what << " is " << actual.shape().to_string();
  const std::vector<double> a = actual.to_vector<double>(), b = expected.to_vector<double>();
  double largest = 0;
  for (const double value : b) largest = std::max(largest, std::abs(value));
  ASSERT_GT(largest, 0) << what;
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_LE(std::abs(a[i] - b[i]), rtol * largest) << what << ", element " << i;
  }
}

using Layout = Tensor (*)(const Tensor&);
Tensor as_it_is(const Tensor& x) { return x; }
// [N, C, H, W] -> [N, H, W, C], and [C_out, C, kH, kW] -> [C_out, kH, kW, C].
Tensor channels_last(const Tensor& x) { return permute(x, {0, 2, 3, 1}); }
// [N, C, T] -> [N, T, C].
Tensor tokens_first(const Tensor& x) { return permute(x, {0, 2, 1}); }

struct Input {
  std::string name;
  Layout layout = as_it_is;
};

// Runs the op on its recorded inputs and compares the output and every recorded gradient.
void expect_equals_reference(const std::string& op, const std::vector<Input>& inputs, Layout layout,
                             const std::function<Tensor(const Tensors&)>& function) {
  const auto read = [&](const std::string& name, Layout convert) {
    return convert(reference().read(op + "." + name)).detach();
  };
  Tensors values;
  for (const Input& input : inputs) {
    values.push_back(read(input.name, input.layout));
    if (is_floating(values.back().dtype())) values.back().set_requires_grad(true);
  }
  const Tensor out = function(values);
  expect_close(out, read("out", layout), 1e-5, op + ".out");
  out.backward(read("g", layout));
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!values[i].requires_grad()) continue;
    const std::string name = "grad_" + inputs[i].name;
    expect_close(values[i].grad(), read(name, inputs[i].layout), 1e-4, op + "." + name);
  }
}

void expect_conv_equals_reference(const std::string& name, int64_t stride, int64_t padding) {
  expect_equals_reference(
      name, {{"x", channels_last}, {"weight", channels_last}, {"bias"}}, channels_last,
      [=](const Tensors& in) { return conv2d(in[0], in[1], in[2], stride, padding); });
}

TEST(ReferenceOps, Conv2dOfEveryKindEqualsPyTorch) {
  expect_conv_equals_reference("conv1", 1, 0);
  expect_conv_equals_reference("conv3", 1, 1);
  expect_conv_equals_reference("conv3_stride2", 2, 1);
  expect_conv_equals_reference("conv3_wide", 1, 1);
  expect_conv_equals_reference("conv5", 1, 2);
}

TEST(ReferenceOps, GroupNormEqualsPyTorch) {
  expect_equals_reference("group_norm", {{"x", channels_last}, {"weight"}, {"bias"}}, channels_last,
                          [](const Tensors& in) { return group_norm(in[0], 32, in[1], in[2]); });
}

// One head an image there: q, k and v follow each other along the channels, as here.
TEST(ReferenceOps, AttentionEqualsTheOriginals) {
  expect_equals_reference("attention", {{"qkv", tokens_first}}, tokens_first,
                          [](const Tensors& in) { return attention(in[0], 1); });
}

// The same numbers as two heads of two images: head by head along the channels.
TEST(ReferenceOps, AttentionOfTwoHeadsIsTwoAttentions) {
  const auto join_heads = [](const Tensor& x) {  // [N * 2, C, T] -> [N, T, 2 * C]
    const int64_t C = x.size(1), T = x.size(2);
    return permute(x.reshape({2, 2 * C, T}), {0, 2, 1}).detach();
  };
  Tensor qkv = join_heads(reference().read("attention.qkv"));
  qkv.set_requires_grad(true);
  const Tensor out = attention(qkv, 2);
  expect_close(out, join_heads(reference().read("attention.out")), 1e-5, "out");
  out.backward(join_heads(reference().read("attention.g")));
  expect_close(qkv.grad(), join_heads(reference().read("attention.grad_qkv")), 1e-4, "grad_qkv");
}

TEST(ReferenceOps, ResamplingEqualsPyTorch) {
  expect_equals_reference("avg_pool", {{"x", channels_last}}, channels_last,
                          [](const Tensors& in) { return avg_pool2d(in[0], 2); });
  expect_equals_reference("upsample", {{"x", channels_last}}, channels_last,
                          [](const Tensors& in) { return upsample_nearest(in[0], 2); });
}

TEST(ReferenceOps, MatrixProductsEqualPyTorch) {
  expect_equals_reference("matmul", {{"x"}, {"y"}}, as_it_is,
                          [](const Tensors& in) { return matmul(in[0], in[1]); });
  expect_equals_reference("linear", {{"x"}, {"weight"}, {"bias"}}, as_it_is,
                          [](const Tensors& in) { return linear(in[0], in[1], in[2]); });
}

TEST(ReferenceOps, SoftmaxSiluAndEmbeddingEqualPyTorch) {
  expect_equals_reference("softmax", {{"x"}}, as_it_is,
                          [](const Tensors& in) { return softmax(in[0]); });
  expect_equals_reference("silu", {{"x"}}, as_it_is, [](const Tensors& in) { return silu(in[0]); });
  expect_equals_reference("embedding", {{"weight"}, {"index"}}, as_it_is,
                          [](const Tensors& in) { return embedding(in[0], in[1]); });
}

// Ten steps: lr 1e-2, weight decay 0.1, betas 0.9 and 0.999, epsilon 1e-8 (the file's metadata).
TEST(ReferenceOps, TenStepsOfAdamWEqualPyTorch) {
  const Tensor param = reference().read("adamw.start"), gradients = reference().read("adamw.grads");
  const Tensor expected = reference().read("adamw.params");
  const Tensor first_moment = zeros_like(param), second_moment = zeros_like(param);
  for (int64_t step = 1; step <= 10; ++step) {
    const Tensor grad = gradients.slice(step - 1, step).reshape(param.shape());
    const AdamWBuffers buffers{param, first_moment, second_moment, grad, {}};
    const AdamWStep options{
        .lr = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .weight_decay = 0.1, .step = step};
    backend(param).adamw({&buffers, 1}, options, {});
    expect_close(param, expected.slice(step - 1, step).reshape(param.shape()), 1e-5,
                 "step " + std::to_string(step));
  }
}

// Without a gradient only the average moves: rate 0.9.
TEST(ReferenceOps, OneUpdateOfTheAverageEqualsTheOriginals) {
  const Tensor param = reference().read("ema.params"), average = reference().read("ema.before");
  const Tensor first_moment = zeros_like(param), second_moment = zeros_like(param);
  const std::vector<View> averages = {average};
  const std::vector<double> rates = {0.9};
  const AdamWBuffers buffers{param, first_moment, second_moment, {}, averages};
  backend(param).adamw({&buffers, 1}, {}, rates);
  expect_close(average, reference().read("ema.after"), 1e-5, "average");
}

}  // namespace
}  // namespace mutilde
