// Ops with a wrong backward, to see that gradcheck rejects them.
#pragma once

#include <gtest/gtest.h>

#include "core/gradcheck.h"
#include "core/op_cases.h"
#include "core/ops/ops.h"

namespace mutilde {

using Function = std::function<Tensor(const Tensors&)>;
/// The inputs, the output and its cotangent -> the cotangents of the inputs, wrongly.
using WrongBackward = std::function<Tensors(const Tensors&, const Tensor&, const Tensor&)>;

inline Tensors detached(const Tensors& inputs) {
  Tensors result;
  for (const Tensor& input : inputs) result.push_back(input.detach());
  return result;
}

inline Tensors wanted(const Tensors& inputs) {
  Tensors result = detached(inputs);
  for (Tensor& input : result) {
    if (is_floating(input.dtype())) input.set_requires_grad(true);
  }
  return result;
}

// The op with its own forward and somebody else's backward.
inline Function with_backward(const Function& op, const WrongBackward& wrong) {
  return [op, wrong](const Tensors& inputs) {
    const Tensors values = detached(inputs);
    const Tensor out = op(values);
    return record("planted", out, inputs, [values, out, wrong](const Tensor& cotangent) {
      return wrong(values, out, cotangent);
    });
  };
}

// What the op's own backward gives.
inline Tensors right_backward(const Function& op, const Tensors& values, const Tensor& cotangent) {
  const EnableGrad enable_grad;
  const Tensors leaves = wanted(values);
  op(leaves).backward(cotangent);
  Tensors gradients;
  for (const Tensor& leaf : leaves) gradients.push_back(leaf.grad());
  return gradients;
}

inline void expect_only_right_passes(const Function& op, const Tensors& inputs,
                                     const WrongBackward& wrong) {
  EXPECT_TRUE(gradcheck(op, wanted(inputs)).passed);
  EXPECT_FALSE(gradcheck(with_backward(op, wrong), wanted(inputs)).passed);
}

}  // namespace mutilde
