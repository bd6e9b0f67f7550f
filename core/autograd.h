// Autograd: reverse mode on a tape of nodes.
//
// An op computes its output with a kernel and calls record() with its backward:
// a closure that maps the cotangent of the output to the cotangents of the inputs.
// That is all an op does; see core/ops/.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <vector>

#include "core/tensor.h"

namespace mutilde {

/// Cotangent of the output -> cotangents of the inputs, in the order given to record(). An
/// undefined tensor means zero, or "not wanted" (ask `input.requires_grad()` before computing an
/// expensive one).
using BackwardFunction = std::function<std::vector<Tensor>(const Tensor& cotangent)>;

/// One entry of the tape, owned by the tensor that it made.
/// A leaf has no backward and keeps a gradient.
struct Node {
  const char* op = "leaf";
  Shape shape;  // of the tensor; cotangents are checked against it
  DType dtype = DType::kFloat32;
  uint64_t order = 0;                         // grows with each op
  std::vector<std::shared_ptr<Node>> inputs;  // null where no gradient is wanted
  BackwardFunction backward;
  bool freed = false;  // by an earlier walk
  Tensor grad;         // leaves only

  bool is_leaf() const { return inputs.empty() && !freed; }
  ~Node();  // iterative, so that a graph of any depth can be dropped
};

/// Attaches a node to `output` if gradients are on and an input requires one; returns `output`.
/// The closure should capture detached tensors: it needs their data alone, and a node would keep
/// the graph behind it alive for as long as the closure lives. (`output` may be captured as it is:
/// it gets its node afterwards, in the copy that is returned, so there is no cycle.)
Tensor record(const char* op, Tensor output, std::initializer_list<Tensor> inputs,
              BackwardFunction backward);
Tensor record(const char* op, Tensor output, const std::vector<Tensor>& inputs,
              BackwardFunction backward);

/// Walks the graph under `root` once, in reverse order of creation, without recursion. Gradients
/// accumulate in the leaves, each as soon as the last op that uses the leaf ran; what a node saved
/// is freed as soon as it ran.
/// Throws AutogradError: root does not require a gradient; a cotangent is missing for a non-scalar
/// root; the graph was freed by an earlier walk. ShapeError: cotangent and root differ in shape.
void backward(const Tensor& root, const Tensor& cotangent = {});

/// While one is alive on this thread, no op is recorded.
class NoGrad {
 public:
  NoGrad();
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};
/// While one is alive on this thread, ops are recorded, inside a NoGrad too.
class EnableGrad {
 public:
  EnableGrad();
  ~EnableGrad();
  EnableGrad(const EnableGrad&) = delete;
  EnableGrad& operator=(const EnableGrad&) = delete;

 private:
  bool before_;
};

/// Gradient checkpointing: function(inputs) without keeping its intermediate values; the backward
/// pass runs the function again, which must give the same result each time (draw random numbers
/// from explicit positions). Leaves that it captures (parameters) get their gradients directly.
Tensor checkpoint(const std::function<Tensor(const std::vector<Tensor>&)>& function,
                  const std::vector<Tensor>& inputs);

}  // namespace mutilde
