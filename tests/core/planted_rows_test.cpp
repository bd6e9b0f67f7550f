// For every row of the table of ops: a gradient that is zeroed, has its sign flipped or is slightly
// off must be rejected. The mistakes that are made in each family are in planted_test.cpp.
#include "core/planted.h"

namespace mutilde {
namespace {

// Any row of the table, with the gradient of one input spoilt after the op's own backward gave it.
class Planted : public ::testing::TestWithParam<OpCase> {};

void expect_rejected_with_each_input(const OpCase& row,
                                     const std::function<Tensor(const Tensor&)>& spoil) {
  for (size_t i = 0; i < row.inputs.size(); ++i) {
    if (!is_floating(row.inputs[i].dtype())) continue;
    const auto wrong = [&, i](const Tensors& values, const Tensor&, const Tensor& cotangent) {
      Tensors gradients = right_backward(row.op, values, cotangent);
      gradients[i] = spoil(gradients[i]);
      return gradients;
    };
    const GradcheckReport report = gradcheck(with_backward(row.op, wrong), wanted(row.inputs));
    EXPECT_FALSE(report.passed) << "input " << i;
    EXPECT_NE(report.message.find("input " + std::to_string(i)), std::string::npos)
        << report.message;
  }
}

TEST_P(Planted, ZerosAFlippedSignAndAnErrorOfAMillionthAreRejected) {
  expect_rejected_with_each_input(GetParam(), [](const Tensor& dx) { return zeros_like(dx); });
  expect_rejected_with_each_input(GetParam(), [](const Tensor& dx) { return -dx; });
  expect_rejected_with_each_input(GetParam(), [](const Tensor& dx) { return dx * (1 + 1e-6); });
}

// Rows of large inputs are left out: that a check along directions finds one wrong element among
// many is shown in gradcheck_test.cpp.
std::vector<OpCase> small_rows() {
  std::vector<OpCase> rows;
  for (const OpCase& row : op_cases()) {
    bool is_small = row.differentiable;
    for (const Tensor& input : row.inputs) is_small = is_small && input.numel() <= 400;
    if (is_small) rows.push_back(row);
  }
  return rows;
}

INSTANTIATE_TEST_SUITE_P(Ops, Planted, ::testing::ValuesIn(small_rows()),
                         [](const auto& parameter) { return parameter.param.name; });

}  // namespace
}  // namespace mutilde
