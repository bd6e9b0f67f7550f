#include "core/gradcheck.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/autograd.h"
#include "core/random.h"

namespace mutilde {

namespace {

using Function = std::function<Tensor(const std::vector<Tensor>&)>;
using Values = std::vector<double>;

// One way to move an input: along an element, or along a random direction of length 1.
struct Probe {
  std::string name;
  Values direction;
};

double dot(const Values& a, const Values& b) {
  double total = 0;
  for (size_t i = 0; i < a.size(); ++i) total += a[i] * b[i];
  return total;
}

// "[0,2,1]" for an offset into a row-major tensor.
std::string index_of(const Shape& shape, int64_t offset) {
  std::vector<int64_t> index(static_cast<size_t>(shape.rank()));
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    index[static_cast<size_t>(axis)] = offset % shape[axis];
    offset /= shape[axis];
  }
  return fmt::format("[{}]", fmt::join(index, ","));
}

// Signs of equal size, so that a wrong element counts as much as any other in every direction.
Values random_signs(int64_t n, uint64_t seed, uint64_t stream) {
  Values signs;
  const double size = 1 / std::sqrt(static_cast<double>(n));
  for (int64_t i = 0; i < n; ++i) {
    const auto words = random_block(seed, stream, static_cast<uint64_t>(i) / 4);
    signs.push_back(words[static_cast<size_t>(i) % 4] & 1 ? size : -size);
  }
  return signs;
}

std::vector<Probe> probes_of(const Tensor& x, uint64_t input, const GradcheckOptions& options) {
  std::vector<Probe> probes;
  if (x.numel() <= options.max_elements) {
    for (int64_t i = 0; i < x.numel(); ++i) {
      Values unit(static_cast<size_t>(x.numel()));
      unit[static_cast<size_t>(i)] = 1;
      probes.push_back({"element " + index_of(x.shape(), i), std::move(unit)});
    }
    return probes;
  }
  for (int i = 0; i < options.directions; ++i) {
    const uint64_t stream = (input + 1) * 1'000'000 + static_cast<uint64_t>(i);
    probes.push_back(
        {fmt::format("random direction {}", i), random_signs(x.numel(), options.seed, stream)});
  }
  return probes;
}

// The function at inputs of which one is moved by `distance` along a direction.
Values evaluate(const Function& function, std::vector<Tensor> inputs, size_t moved,
                const Values& direction, double distance) {
  const NoGrad no_grad;
  const Tensor& x = inputs[moved];
  Values values = x.to_vector<double>();
  for (size_t i = 0; i < values.size(); ++i) values[i] += distance * direction[i];
  inputs[moved] = Tensor::from(x.shape(), values).to(x.device());
  return function(inputs).to_vector<double>();
}

// The derivative along a direction. Outputs are subtracted before they are contracted: those that
// do not depend on what moved cancel exactly and add no round-off.
double numeric_derivative(const Function& function, const std::vector<Tensor>& inputs, size_t moved,
                          const Values& direction, const Values& cotangent, double h) {
  const auto at = [&](double distance) {
    return evaluate(function, inputs, moved, direction, distance);
  };
  const Values plus = at(h), minus = at(-h), plus2 = at(2 * h), minus2 = at(-2 * h);
  double total = 0;
  for (size_t i = 0; i < cotangent.size(); ++i) {
    total += cotangent[i] * (8 * (plus[i] - minus[i]) - (plus2[i] - minus2[i]));
  }
  return total / (12 * h);
}

void check_misuse(const std::vector<Tensor>& inputs) {
  bool wanted = false;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].requires_grad()) continue;
    wanted = true;
    if (inputs[i].dtype() != DType::kFloat64) {
      fail<DTypeError>("gradcheck: input {} is {}, float64 is expected", i,
                       name_of(inputs[i].dtype()));
    }
  }
  if (!wanted) fail<Error>("gradcheck: no input requires a gradient");
}

// What one input showed.
struct Comparison {
  double error = 0;             // the largest |analytic - numeric|
  double largest_gradient = 0;  // the largest |numeric|
  std::string worst;            // says where the error is

  /// The error as a multiple of what is allowed; infinite for one that is not finite, or that is
  /// measured against a gradient that is not.
  double excess(const GradcheckOptions& options) const {
    const double allowed = options.atol + options.rtol * largest_gradient;
    if (!std::isfinite(error) || !std::isfinite(allowed))
      return std::numeric_limits<double>::infinity();
    return error / allowed;
  }
};

Comparison compare(const Function& function, const std::vector<Tensor>& inputs, size_t input,
                   const Values& gradient, const Values& cotangent,
                   const GradcheckOptions& options) {
  Comparison result;
  for (const Probe& probe : probes_of(inputs[input], input, options)) {
    const double analytic = dot(gradient, probe.direction);
    const double numeric =
        numeric_derivative(function, inputs, input, probe.direction, cotangent, options.step);
    double error = std::abs(analytic - numeric);
    if (std::isnan(error)) error = std::numeric_limits<double>::infinity();
    result.largest_gradient = std::max(result.largest_gradient, std::abs(numeric));
    if (error > result.error || result.worst.empty()) {
      result.error = error;
      result.worst =
          fmt::format("input {} {}, {}: backward gives {:.10g}, the difference quotient {:.10g}",
                      input, inputs[input].shape(), probe.name, analytic, numeric);
    }
  }
  return result;
}

}  // namespace

GradcheckReport gradcheck(const Function& function, const std::vector<Tensor>& inputs,
                          const GradcheckOptions& options) {
  check_misuse(inputs);
  std::vector<Tensor> leaves;
  for (const Tensor& input : inputs) {
    leaves.push_back(input.clone());
    if (input.requires_grad()) leaves.back().set_requires_grad(true);
  }
  const EnableGrad enable_grad;
  const Tensor output = function(leaves);
  if (output.dtype() != DType::kFloat64) {
    fail<DTypeError>("gradcheck: the function returns {}, float64 is expected",
                     name_of(output.dtype()));
  }
  const Tensor cotangent =
      Generator(options.seed).normal(output.shape(), DType::kFloat64, output.device());
  if (output.requires_grad()) output.backward(cotangent);

  GradcheckReport report{true, {}, 0, 0};
  double worst_excess = -1;
  for (size_t i = 0; i < leaves.size(); ++i) {
    if (!leaves[i].requires_grad()) continue;
    // A gradient that never arrived counts as zero, and is compared as such.
    const Tensor grad = leaves[i].grad();
    const Values gradient =
        grad.defined() ? grad.to_vector<double>() : Values(static_cast<size_t>(leaves[i].numel()));
    const Comparison result =
        compare(function, inputs, i, gradient, cotangent.to_vector<double>(), options);
    report.largest_gradient = std::max(report.largest_gradient, result.largest_gradient);
    const double excess = result.excess(options);
    const bool fits = excess <= 1;
    if (fits && !(result.largest_gradient > options.atol)) {
      report.passed = false;
      report.message = fmt::format(
          "gradcheck: input {} {}: the numeric gradient is zero everywhere, so that a backward "
          "which returns nothing would pass; choose other inputs or another function",
          i, inputs[i].shape());
      return report;
    }
    report.passed = report.passed && fits;
    if (excess > worst_excess) {
      worst_excess = excess;
      report.worst_error =
          result.error / std::max(result.largest_gradient, std::numeric_limits<double>::min());
      report.message = "gradcheck: " + result.worst;
    }
  }
  return report;
}

}  // namespace mutilde
