#include <cstdio>

#include "core/gradcheck.h"
#include "core/ops/ops.h"

using namespace mutilde;

// x^3. Its backward: the output's cotangent -> that of x.
Tensor cube(const Tensor& x) {
  const Tensor value = x.detach();  // what record() gets and the closure keeps is outside the graph
  return record("cube", value * square(value), {x},
                [value](const Tensor& cotangent) -> std::vector<Tensor> {
                  return {3.0 * square(value) * cotangent};
                });
}

int main() {
  Tensor x = Tensor::full({3, 4}, 0.5, DType::kFloat64);  // float32 is refused: too coarse
  x.set_requires_grad(true);
  const GradcheckReport report =
      gradcheck([](const std::vector<Tensor>& in) { return cube(in[0]); }, {x});
  // A failure names the worst element, with both values.
  std::puts(report.passed ? "cube: the gradient is right" : report.message.c_str());
}
