// Ops on activations in bfloat16 and float16, against the CPU's float32 on the same numbers. Arithmetic is float32
// on both sides, so that they differ by its rounding, and where a result is stored in the short type by that.
#include "tests/cuda/short_types.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include <gtest/gtest.h>

#include "core/op_cases.h"
#include "core/ops/ops.h"
#include "cuda/devices.h"
#include "nn/optimizer.h"

namespace mutilde {

std::vector<Tensor> results_of(const ShortCase& row, DType type, bool short_on_gpu) {
  std::vector<Tensor> x;
  for (size_t i = 0; i < row.inputs.size(); ++i) {
    Tensor one = uniform(row.inputs[i].shape, -1, 1, i + 1).to(type);
    if (!short_on_gpu || !row.inputs[i].is_activation) one = one.to(DType::kFloat32);
    if (short_on_gpu) one = one.to(Device::cuda());
    x.push_back(one.set_requires_grad(true));
  }
  const Tensor out = row.op(x);
  const Tensor cotangent = uniform(out.shape(), -1, 1, 99).to(type);
  out.backward(cotangent.to(out.dtype()).to(out.device()));
  std::vector<Tensor> results{out.detach()};
  for (const Tensor& one : x) results.push_back(one.grad());
  return results;
}

namespace {

using Inputs = std::vector<ShortCase::Input>;

void add_elementwise(std::vector<ShortCase>& rows) {
  const Inputs two{{{3, 5, 8}}, {{3, 5, 8}}};
  rows.push_back({"add", two, 1, [](const auto& x) { return x[0] + x[1]; }});
  rows.push_back({"mul", two, 1, [](const auto& x) { return x[0] * x[1]; }});
  rows.push_back({"broadcast add", {{{2, 3, 3, 10}}, {{2, 1, 1, 10}}}, 9, [](const auto& x) {
                    return x[0] + x[1];
                  }});
  rows.push_back({"silu", {{{7, 9}}}, 4, [](const auto& x) { return silu(x[0]); }});
  rows.push_back({"affine", {{{7, 8}}}, 2, [](const auto& x) { return affine(x[0], 0.3, 2); }, 2});
  rows.push_back({"clamp", {{{5, 16}}}, 1, [](const auto& x) { return clamp(x[0], -0.5, 0.25); }});
  rows.push_back({"dropout", {{{5, 18}}}, 1, [](const auto& x) {
                    return dropout(x[0], 0.5, {3, 1, 0});
                  }});
  rows.push_back({"used twice", {{{4, 8}}}, 2, [](const auto& x) { return x[0] + x[0]; }});
}

void add_layout_and_resampling(std::vector<ShortCase>& rows) {
  for (const int64_t C : {8, 24, 5}) {
    const Inputs image{{{2, 4, 6, C}}};
    rows.push_back({"concat", {{{2, 3, C}}, {{2, 3, 16}}, {{2, 3, 2 * C}}}, 1, [](const auto& x) {
                      return concat({x[0], x[1], x[2]});
                    }});
    rows.push_back({"slice_channels", image, 1,
                    [C](const auto& x) { return slice_channels(x[0], C / 2, C); }});
    rows.push_back(
        {"upsample_nearest", image, 4, [](const auto& x) { return upsample_nearest(x[0], 2); }});
    rows.push_back({"avg_pool2d", image, 4, [](const auto& x) { return avg_pool2d(x[0], 2); }});
  }
}

void add_group_norms(std::vector<ShortCase>& rows) {
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
    rows.push_back(
        {"group_norm",
         {{x}, {{C}, false}, {{C}, false}},
         terms,
         [groups = groups](const auto& in) { return group_norm(in[0], groups, in[1], in[2]); },
         16});
    rows.push_back({"group_norm_silu",
                    {{x}, {{C}, false}, {{C}, false}, {{N, 2 * C}, false}},
                    terms,
                    [groups = groups](const auto& in) {
                      return group_norm_silu(in[0], groups, in[1], in[2], in[3]);
                    },
                    16});
  }
}

void add_products(std::vector<ShortCase>& rows) {
  for (const auto [C, C_out, stride] : {std::array<int64_t, 3>{3, 5, 1}, {16, 8, 1}, {8, 16, 2}}) {
    rows.push_back(
        {"conv2d",
         {{{2, 6, 5, C}}, {{C_out, 3, 3, C}, false}, {{C_out}, false}},
         9.0 * static_cast<double>(std::max(C, C_out)) * 60,
         [stride = stride](const auto& x) { return conv2d(x[0], x[1], x[2], stride, 1); }});
  }
  for (const auto [M, K, N] : {std::array<int64_t, 3>{5, 7, 3}, {33, 24, 40}}) {
    rows.push_back({"linear",
                    {{{M, K}}, {{N, K}, false}, {{N}, false}},
                    static_cast<double>((M + K + N) * 41),
                    [](const auto& x) { return linear(x[0], x[1], x[2]); }});
  }
}

/// The gradient of a bias, of one chunk of rows and of several.
void add_sums_of_columns(std::vector<ShortCase>& rows) {
  for (const auto [M, C] : {std::array<int64_t, 2>{3, 8}, {5000, 16}, {700, 136}, {9, 5}}) {
    rows.push_back({"bias",
                    {{{M, C}}, {{8, C}, false}, {{8}, false}},
                    static_cast<double>(M * 2 + C),
                    [](const auto& x) { return linear(x[0], x[1], x[2]); },
                    4});
  }
}

}  // namespace

std::vector<ShortCase> short_cases() {
  std::vector<ShortCase> rows;
  add_elementwise(rows);
  add_layout_and_resampling(rows);
  add_group_norms(rows);
  add_products(rows);
  add_sums_of_columns(rows);
  return rows;
}

namespace {

class CudaShort : public testing::TestWithParam<ShortType> {
 protected:
  void SetUp() override { use_cuda(); }
  DType dtype() const { return GetParam().dtype; }
  Tensor numbers(const Shape& shape, uint64_t seed) const {
    return uniform(shape, -1, 1, seed).to(dtype()).to(Device::cuda());
  }
  static Tensor parameter(const Shape& shape, uint64_t seed) {
    return uniform(shape, -1, 1, seed).to(DType::kFloat32).to(Device::cuda());
  }
  void expect_true_copy(const Tensor& parameter) const;
};
INSTANTIATE_TEST_SUITE_P(Types, CudaShort, testing::ValuesIn(kShortTypes), kNameOfShortType);

TEST_P(CudaShort, OpsAreTheCpus) {
  for (const ShortCase& row : short_cases()) {
    const auto actual = results_of(row, dtype(), true), expected = results_of(row, dtype(), false);
    for (size_t r = 0; r < actual.size(); ++r) {
      const bool is_short = r == 0 || row.inputs[r - 1].is_activation;
      ASSERT_EQ(actual[r].dtype(), is_short ? dtype() : DType::kFloat32) << row.name << " " << r;
      const auto a = actual[r].to_vector<double>(), b = expected[r].to_vector<double>();
      ASSERT_EQ(a.size(), b.size()) << row.name << " " << r;
      for (size_t i = 0; i < a.size(); ++i) {
        // Half of the type's last bit, of a number that has all its bits or of one that has not.
        const double rounding =
            is_short ? GetParam().half_unit * std::abs(b[i]) + GetParam().least : 0;
        ASSERT_NEAR(a[i], b[i], rounding + row.terms * row.size * 0x1p-23)
            << row.name << " of " << row.inputs[0].shape.to_string() << ", result " << r
            << ", number " << i;
      }
    }
  }
}

/// All elements of a parameter's copy are its own, rounded.
void CudaShort::expect_true_copy(const Tensor& parameter) const {
  const Tensor rounded = parameter.detach().to(dtype());
  EXPECT_EQ(parameter.shortened(dtype()).to_vector<float>(), rounded.to_vector<float>());
}

TEST_P(CudaShort, AParametersCopyFollowsIt) {
  const Tensor values = parameter({3, 5}, 1);
  AdamW optimizer({{"weight", values.clone().set_requires_grad(true), {}}}, AdamWOptions{});
  const Tensor weight = optimizer.parameters().front().value;
  EXPECT_FALSE(weight.short_copy().defined());
  expect_true_copy(weight);
  EXPECT_EQ(weight.short_copy().dtype(), dtype());
  const void* place = weight.shortened(dtype()).raw();
  weight.set_grad(parameter({3, 5}, 2));
  const std::vector<float> before = weight.shortened(dtype()).to_vector<float>();
  optimizer.step(0.3);  // writes the copy too
  EXPECT_EQ(weight.shortened(dtype()).raw(), place);
  EXPECT_NE(weight.shortened(dtype()).to_vector<float>(), before);
  expect_true_copy(weight);
  weight.copy_(values);
  EXPECT_FALSE(weight.short_copy().defined());
  expect_true_copy(weight);
  // Of a part there is none to keep, and a product does not rely on one; a view of the whole shares it.
  expect_true_copy(weight.detach().slice(1, 3));
  const Tensor x = numbers({9, 5}, 3);
  EXPECT_EQ(linear(x, weight.detach().slice(1, 3), {}).to_vector<float>(),
            linear(x, weight.detach().slice(1, 3).clone(), {}).to_vector<float>());
  EXPECT_EQ(x.shortened(dtype()).raw(), x.raw());
  EXPECT_EQ(weight.detach().reshape({15}).shortened(dtype()).raw(),
            weight.shortened(dtype()).raw());
}

TEST_P(CudaShort, AParameterKeepsOneCopyOfTheTypeThatWasAskedForLast) {
  const Tensor weight = parameter({3, 5}, 1);
  for (const ShortType& other : kShortTypes) {
    weight.shortened(other.dtype);
    EXPECT_EQ(weight.short_copy().dtype(), other.dtype);
    expect_true_copy(weight);
    EXPECT_EQ(weight.short_copy().dtype(), dtype());
  }
}

TEST_P(CudaShort, TheCpuRefusesIt) {
  const Tensor x = uniform({2, 3, 3, 4}).to(dtype());
  EXPECT_THROW(silu(x), DTypeError);
  EXPECT_THROW(conv2d(x, uniform({2, 1, 1, 4}).to(DType::kFloat32), {}), DTypeError);
}

TEST_P(CudaShort, ParametersAreFloat32) {
  const Tensor x = numbers({2, 3, 3, 4}, 1), weight = parameter({2, 1, 1, 4}, 2);
  EXPECT_THROW(conv2d(x, weight.to(dtype()), {}), DTypeError);
  EXPECT_EQ(conv2d(x, weight, {}).dtype(), dtype());
}

// Every bit pattern, there and back, as the CPU has it.
TEST_P(CudaShort, CastsAreTheCpus) {
  const Tensor all = Tensor::empty({1 << 16}, dtype());
  auto* bits = static_cast<uint16_t*>(all.raw());
  for (unsigned i = 0; i < 1U << 16; ++i) bits[i] = static_cast<uint16_t>(i);
  const Tensor there = all.to(Device::cuda()).to(DType::kFloat32), here = all.to(DType::kFloat32);
  const auto expected = here.to_vector<float>(), actual = there.to_vector<float>();
  const Tensor back = there.to(dtype()).to(Device::cpu());
  const auto* returned = static_cast<const uint16_t*>(back.raw());
  for (unsigned i = 0; i < 1U << 16; ++i) {
    if (std::isnan(expected[i])) {
      ASSERT_TRUE(std::isnan(actual[i])) << i;
    } else {
      ASSERT_EQ(actual[i], expected[i]) << i;
      ASSERT_EQ(returned[i], i);
    }
  }
  const Tensor any = uniform({1 << 15}, -12, 12, 3);
  std::vector<float> of_all_sizes;
  for (const double x : any.to_vector<double>())
    of_all_sizes.push_back(static_cast<float>(std::exp2(2 * std::abs(x)) * x / 1024));
  const Tensor x = Tensor::from<float>({1 << 15}, of_all_sizes);
  EXPECT_EQ(x.to(Device::cuda()).to(dtype()).to_vector<float>(), x.to(dtype()).to_vector<float>());
}

// What is too large for a float16 becomes infinity, and from there on nothing makes it finite again on its way
// to the parameters' gradients: it is by those that a step of training is skipped.
TEST_P(CudaShort, AnInfinityInACotangentReachesEveryGradient) {
  const auto expect_infinite = [&](const char* name, const auto& op, std::vector<Tensor> inputs) {
    for (Tensor& input : inputs) input.set_requires_grad(true);
    const Tensor out = op(inputs);
    const Tensor cotangent = uniform(out.shape(), -1, 1, 9).to(DType::kFloat32);
    cotangent.data<float>()[out.numel() / 2] = std::numeric_limits<float>::infinity();
    out.backward(cotangent.to(out.dtype()).to(Device::cuda()));
    for (size_t i = 0; i < inputs.size(); ++i) {
      const auto gradient = inputs[i].grad().to_vector<float>();
      EXPECT_FALSE(
          std::all_of(gradient.begin(), gradient.end(), [](float x) { return std::isfinite(x); }))
          << name << " " << i;
    }
  };
  for (const int64_t C : {16, 5}) {  // by the fast kernels, and by those for all sizes
    const Tensor image = numbers({2, 4, 4, C}, 1), rows = numbers({2, 16, C}, 1);
    const Tensor of_channels = parameter({C}, 2), bias = parameter({8}, 3);
    expect_infinite("conv2d", [](const auto& x) { return conv2d(x[0], x[1], x[2], 1, 1); },
                    {image, parameter({8, 3, 3, C}, 2), bias});
    expect_infinite("linear", [](const auto& x) { return linear(x[0], x[1], x[2]); },
                    {numbers({9, C}, 1), parameter({8, C}, 2), bias});
    expect_infinite("group_norm_silu",
                    [C](const auto& x) { return group_norm_silu(x[0], C, x[1], x[2], x[3]); },
                    {rows, of_channels, parameter({C}, 3), parameter({2, 2 * C}, 4)});
    expect_infinite("attention", [](const auto& x) { return attention(x[0], 1); },
                    {numbers({2, 7, 3 * C}, 1)});
    expect_infinite("silu", [](const auto& x) { return silu(x[0]); }, {image});
    expect_infinite("sum_pool",
                    [](const auto& x) { return avg_pool2d(upsample_nearest(x[0], 2), 4); },
                    {image});
  }
}

// Logits of 240^2 64 / 8 = 460,800 and zero: the rows of a Hadamard matrix times 240, as queries and keys.
TEST_P(CudaShort, LogitsMayBeBeyondTheRangeOfTheType) {
  constexpr int64_t D = 64;
  for (const int64_t heads : {1, 2}) {
    const Tensor qkv = uniform({1, D, heads * 3 * D}, -1, 1, 1).to(dtype()).to(DType::kFloat32);
    float* x = qkv.data<float>();
    std::vector<float> values;
    for (int64_t i = 0; i < D; ++i) {
      for (int64_t head = 0; head < heads; ++head) {
        float* row = x + (i * heads + head) * 3 * D;
        for (int64_t d = 0; d < D; ++d)
          row[d] = row[D + d] = std::popcount(static_cast<uint64_t>(i & d)) % 2 == 0 ? 240 : -240;
        values.insert(values.end(), row + 2 * D, row + 3 * D);
      }
    }
    EXPECT_EQ(attention(qkv.to(dtype()).to(Device::cuda()), heads).to_vector<float>(), values);
  }
}

}  // namespace
}  // namespace mutilde
