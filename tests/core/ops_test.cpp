// Every op against its formula, its derivative and its definition. The tests are made from the
// table in op_cases.cpp: one row there is all that a new op needs.
#include "core/ops/ops.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/gradcheck.h"
#include "core/op_cases.h"
#include "support/devices.h"

namespace mutilde {
namespace {

// The inputs in another precision and place; floating ones want gradients if asked.
Tensors prepared(const Tensors& inputs, DType dtype, Device device, bool want_gradients = false) {
  Tensors result;
  for (const Tensor& input : inputs) {
    const bool floating = is_floating(input.dtype());
    Tensor x = input.detach().to(floating ? dtype : input.dtype()).to(device).clone();
    if (floating && want_gradients) x.set_requires_grad(true);
    result.push_back(x);
  }
  return result;
}

Arrays as_arrays(const Tensors& inputs) {
  Arrays arrays;
  for (const Tensor& input : inputs) arrays.emplace_back(input);
  return arrays;
}

double largest(const std::vector<double>& values) {
  double result = 0;
  for (const double value : values) result = std::max(result, std::abs(value));
  return result;
}

// Round-off of one op. A sum of n terms is off by at most n eps / 2 times the sum of their sizes,
// which is of the size of the largest result (all inputs are of order 1); the elementary functions
// of float32 are good to 4 eps, and a few follow each other. 8 n eps leaves room for both and
// nothing else: a missing term, or float32 where float64 is due, is off by more.
double tolerance(const OpCase& row, DType dtype) {
  const double eps = dtype == DType::kFloat32 ? std::numeric_limits<float>::epsilon()
                                              : std::numeric_limits<double>::epsilon();
  return 8 * row.terms * eps;
}

void expect_near(const std::vector<double>& actual, const std::vector<double>& expected,
                 double relative, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  const double allowed = relative * std::max(1.0, largest(expected));
  size_t worst = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const bool is_near = std::abs(actual[i] - expected[i]) <= allowed;  // false for NaN
    if (!is_near) worst = i;
    ASSERT_TRUE(is_near) << what << ", element " << worst << ": " << actual[i] << " given, "
                         << expected[i] << " expected, " << allowed << " allowed";
  }
}

// The gradient of every input, contracted with a cotangent that depends on the shape alone.
Tensors gradients_of(const std::function<Tensor(const Tensors&)>& op, const Tensors& inputs) {
  const Tensor out = op(inputs);
  const Tensor cotangent = uniform(out.shape(), -1, 1, 99).to(out.dtype()).to(out.device());
  out.backward(cotangent);
  Tensors gradients;
  for (const Tensor& input : inputs) {
    if (input.requires_grad()) gradients.push_back(input.grad());
  }
  return gradients;
}

using Filter = bool (*)(const OpCase&);

std::vector<OpCase> rows_where(Filter filter) {
  std::vector<OpCase> rows;
  std::copy_if(op_cases().begin(), op_cases().end(), std::back_inserter(rows), filter);
  return rows;
}

std::string name_of_row(const ::testing::TestParamInfo<OpCase>& info) { return info.param.name; }

class Forward : public ::testing::TestWithParam<OpCase> {};
class Gradient : public ::testing::TestWithParam<OpCase> {};
class FusedEqualsComposition : public ::testing::TestWithParam<OpCase> {};
class EmptyInput : public ::testing::TestWithParam<OpCase> {};

// The reference is computed in double from the inputs as the op sees
// them, rounded to its precision.
void expect_forward_equals_reference(const OpCase& row, DType dtype) {
  for (const Device device : devices()) {
    const Tensors inputs = prepared(row.inputs, dtype, device);
    const Tensor out = row.op(inputs);
    const Array expected = row.reference(as_arrays(inputs));
    EXPECT_EQ(out.shape(), expected.shape) << out.shape().to_string();
    expect_near(out.to_vector<double>(), expected.values, tolerance(row, dtype), row.name);
  }
}

TEST_P(Forward, EqualsTheFormulaInFloat64) {
  expect_forward_equals_reference(GetParam(), DType::kFloat64);
}
TEST_P(Forward, EqualsTheFormulaInFloat32) {
  expect_forward_equals_reference(GetParam(), DType::kFloat32);
}
INSTANTIATE_TEST_SUITE_P(Ops, Forward, ::testing::ValuesIn(op_cases()), name_of_row);

TEST_P(Gradient, EqualsDifferenceQuotientsInFloat64) {
  for (const Device device : devices()) {
    const Tensors inputs = prepared(GetParam().inputs, DType::kFloat64, device, true);
    GradcheckOptions options;
    if (device.type != DeviceType::kCpu) {
      // A GPU's kernels may be emulated, which takes long. A wrong element shows in any direction.
      options.max_elements = 24;
      options.directions = 8;
    }
    const GradcheckReport report = gradcheck(GetParam().op, inputs, options);
    EXPECT_TRUE(report.passed) << report.message;
  }
}

// Which the test above has proved; float32 has kernels of its own.
TEST_P(Gradient, InFloat32EqualsFloat64) {
  for (const Device device : devices()) {
    const Tensors inputs = prepared(GetParam().inputs, DType::kFloat32, device, true);
    const Tensors exact_inputs = prepared(inputs, DType::kFloat64, device, true);
    const Tensors actual = gradients_of(GetParam().op, inputs);
    const Tensors expected = gradients_of(GetParam().op, exact_inputs);
    for (size_t i = 0; i < actual.size(); ++i) {
      EXPECT_EQ(actual[i].dtype(), DType::kFloat32);
      expect_near(
          actual[i].to_vector<double>(), expected[i].to_vector<double>(),
          4 * tolerance(GetParam(), DType::kFloat32),  // forward and backward, and their factors
          "gradient of input " + std::to_string(i));
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Ops, Gradient, ::testing::ValuesIn(rows_where([](const OpCase& row) {
                           return row.differentiable;
                         })),
                         name_of_row);

void expect_fused_equals_composition(const OpCase& row, DType dtype) {
  for (const Device device : devices()) {
    const Tensors fused_inputs = prepared(row.inputs, dtype, device, true);
    const Tensors plain_inputs = prepared(row.inputs, dtype, device, true);
    // Both sides are off by the round-off of their own chain of sums.
    const double allowed = 4 * tolerance(row, dtype);
    expect_near(row.op(fused_inputs).to_vector<double>(),
                row.composition(plain_inputs).to_vector<double>(), allowed, row.name);
    const Tensors actual = gradients_of(row.op, fused_inputs);
    const Tensors expected = gradients_of(row.composition, plain_inputs);
    for (size_t i = 0; i < actual.size(); ++i) {
      expect_near(actual[i].to_vector<double>(), expected[i].to_vector<double>(), allowed,
                  "gradient of input " + std::to_string(i));
    }
  }
}

TEST_P(FusedEqualsComposition, InFloat64) {
  expect_fused_equals_composition(GetParam(), DType::kFloat64);
}
TEST_P(FusedEqualsComposition, InFloat32) {
  expect_fused_equals_composition(GetParam(), DType::kFloat32);
}
INSTANTIATE_TEST_SUITE_P(Ops, FusedEqualsComposition,
                         ::testing::ValuesIn(rows_where([](const OpCase& row) {
                           return static_cast<bool>(row.composition);
                         })),
                         name_of_row);

// A batch of none: the formula still says which shape comes out (and that a sum of nothing is 0),
// and whatever is not in the batch gets a gradient of zeros.
TEST_P(EmptyInput, GivesWhatTheFormulaGivesAndZeroGradients) {
  for (const Device device : devices()) {
    Tensors inputs = GetParam().inputs;
    for (const size_t i : GetParam().batched) {
      inputs[i] = Tensor::empty(inputs[i].shape().with(0, 0), inputs[i].dtype());
    }
    inputs = prepared(inputs, DType::kFloat64, device, GetParam().differentiable);
    const Tensor out = GetParam().op(inputs);
    const Array expected = GetParam().reference(as_arrays(inputs));
    EXPECT_EQ(out.shape(), expected.shape) << out.shape().to_string();
    EXPECT_EQ(out.to_vector<double>(), expected.values);
    if (!GetParam().differentiable) continue;
    const Tensors gradients = gradients_of(GetParam().op, inputs);
    for (const Tensor& gradient : gradients) EXPECT_EQ(largest(gradient.to_vector<double>()), 0);
  }
}
INSTANTIATE_TEST_SUITE_P(Ops, EmptyInput, ::testing::ValuesIn(rows_where([](const OpCase& row) {
                           return !row.batched.empty();
                         })),
                         name_of_row);

}  // namespace
}  // namespace mutilde
