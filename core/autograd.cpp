#include "core/autograd.h"

#include <atomic>
#include <queue>
#include <unordered_map>
#include <utility>

namespace mutilde {

namespace {

thread_local bool gradients_on = true;
std::atomic<uint64_t> next_order{1};

using NodePtr = std::shared_ptr<Node>;

// sum += term, in place where nobody else can see the buffer: cotangents of the result of `op`.
void add_to(Tensor& sum, const Tensor& term, const char* op) {
  if (!sum.defined()) {
    sum = term;
    return;
  }
  if (is_short(sum.dtype()) && !backend(sum).has_kernels_for(sum.dtype())) {
    fail<DTypeError>(
        "backward: cannot add up the {} cotangents of '{}', float32 or float64 is expected",
        name_of(sum.dtype()), op);
  }
  if (!sum.unique()) sum = sum.clone();
  backend(sum).accumulate(term, sum);
}

// How many times each node under the root will receive a cotangent.
std::unordered_map<Node*, int> count_uses(const NodePtr& root) {
  std::unordered_map<Node*, int> uses{{root.get(), 0}};
  std::vector<Node*> stack{root.get()};
  while (!stack.empty()) {
    Node* node = stack.back();
    stack.pop_back();
    if (node->freed) {
      fail<AutogradError>(
          "backward: the graph of '{}' was freed by an earlier backward(); run the forward "
          "pass again",
          node->op);
    }
    for (const NodePtr& input : node->inputs) {
      if (input && uses[input.get()]++ == 0) stack.push_back(input.get());
    }
  }
  return uses;
}

void check_cotangent(const Node& consumer, const Node& input, const Tensor& cotangent) {
  if (!(cotangent.shape() == input.shape) || cotangent.dtype() != input.dtype) {
    fail<ShapeError>("backward of '{}': gave a {} {} cotangent for an input of {} {}", consumer.op,
                     name_of(cotangent.dtype()), cotangent.shape(), name_of(input.dtype),
                     input.shape);
  }
}

void finish_leaf(Node& leaf, Tensor cotangent) {
  if (leaf.grad.defined()) {
    add_to(leaf.grad, cotangent, leaf.op);
  } else {
    // A buffer that an op or the caller still holds must not become the gradient that others
    // change.
    leaf.grad = cotangent.unique() ? std::move(cotangent) : cotangent.clone();
  }
}

}  // namespace

Node::~Node() {
  // A chain of a million nodes must not become a million nested destructors: the inputs of a dying
  // node are handed to the outermost destructor on this thread, which drops them one by one.
  thread_local std::vector<NodePtr>* pending = nullptr;
  if (pending != nullptr) {
    for (NodePtr& input : inputs) pending->push_back(std::move(input));
    return;
  }
  std::vector<NodePtr> queue = std::move(inputs);
  pending = &queue;
  backward = nullptr;  // its saved tensors may hold nodes too
  while (!queue.empty()) {
    const NodePtr node = std::move(queue.back());
    queue.pop_back();
  }
  pending = nullptr;
}

Tensor record(const char* op, Tensor output, const std::vector<Tensor>& inputs,
              BackwardFunction backward) {
  if (!gradients_on) return output;
  bool wanted = false;
  for (const Tensor& input : inputs) wanted |= input.requires_grad();
  if (!wanted) return output;
  auto node = std::make_shared<Node>();
  node->op = op;
  node->shape = output.shape();
  node->dtype = output.dtype();
  node->order = next_order++;
  for (const Tensor& input : inputs) node->inputs.push_back(input.node());
  node->backward = std::move(backward);
  output.set_node(std::move(node));
  return output;
}

Tensor record(const char* op, Tensor output, std::initializer_list<Tensor> inputs,
              BackwardFunction backward) {
  return record(op, std::move(output), std::vector<Tensor>(inputs), std::move(backward));
}

void backward(const Tensor& root, const Tensor& cotangent) {
  if (!root.requires_grad()) {
    fail<AutogradError>(
        "backward: the root does not depend on any tensor that requires a gradient");
  }
  if (!cotangent.defined() && root.numel() != 1) {
    fail<AutogradError>(
        "backward: a root of shape {} needs a cotangent; only a scalar does without", root.shape());
  }
  if (cotangent.defined() &&
      (!(cotangent.shape() == root.shape()) || cotangent.dtype() != root.dtype())) {
    fail<ShapeError>("backward: cotangent {} {} given, root is {} {}", name_of(cotangent.dtype()),
                     cotangent.shape(), name_of(root.dtype()), root.shape());
  }
  const NoGrad no_grad;
  std::unordered_map<Node*, int> uses_left = count_uses(root.node());
  std::unordered_map<Node*, Tensor> cotangents;
  cotangents[root.node().get()] =
      cotangent.defined() ? cotangent.detach()
                          : Tensor::full(root.shape(), 1.0, root.dtype(), root.device());

  const auto take_cotangent = [&](Node* node) {
    const auto found = cotangents.find(node);
    if (found == cotangents.end()) return Tensor{};
    Tensor taken = std::move(found->second);
    cotangents.erase(found);
    return taken;
  };

  // A node is ready when all its consumers have run; among the ready ones the latest made goes
  // first, which is the order in which the buffers of the forward pass become free. Leaves do not
  // wait for their turn: they were made first, and their gradients would pile up until the end.
  const auto earlier = [](const NodePtr& a, const NodePtr& b) { return a->order < b->order; };
  std::priority_queue<NodePtr, std::vector<NodePtr>, decltype(earlier)> ready(earlier);
  ready.push(root.node());
  while (!ready.empty()) {
    const NodePtr node = ready.top();
    ready.pop();
    Tensor dout = take_cotangent(node.get());
    if (node->is_leaf()) {
      if (dout.defined()) finish_leaf(*node, std::move(dout));
      continue;
    }
    std::vector<Tensor> gradients(node->inputs.size());
    if (dout.defined()) gradients = node->backward(dout);
    dout = {};
    if (gradients.size() != node->inputs.size()) {
      fail<AutogradError>("backward of '{}': gave {} cotangents for {} inputs", node->op,
                          gradients.size(), node->inputs.size());
    }
    node->backward = nullptr;  // frees what it saved
    const std::vector<NodePtr> inputs = std::exchange(node->inputs, {});
    node->freed = true;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i]) continue;
      if (gradients[i].defined()) {
        check_cotangent(*node, *inputs[i], gradients[i]);
        add_to(cotangents[inputs[i].get()], gradients[i], inputs[i]->op);
        gradients[i] = {};
      }
      if (--uses_left[inputs[i].get()] > 0) continue;
      if (!inputs[i]->is_leaf()) {
        ready.push(inputs[i]);
      } else if (Tensor sum = take_cotangent(inputs[i].get()); sum.defined()) {
        finish_leaf(*inputs[i], std::move(sum));
      }
    }
  }
}

NoGrad::NoGrad() : before_(std::exchange(gradients_on, false)) {}
NoGrad::~NoGrad() { gradients_on = before_; }
EnableGrad::EnableGrad() : before_(std::exchange(gradients_on, true)) {}
EnableGrad::~EnableGrad() { gradients_on = before_; }

Tensor checkpoint(const std::function<Tensor(const std::vector<Tensor>&)>& function,
                  const std::vector<Tensor>& inputs) {
  if (!gradients_on) return function(inputs);
  Tensor output;
  {
    const NoGrad no_grad;
    output = function(inputs);
  }
  // Recorded as if an input required a gradient even where none does: captured parameters may.
  std::vector<Tensor> sources = inputs;
  sources.push_back(Tensor::zeros({}).set_requires_grad(true));
  return record("checkpoint", output, sources, [function, inputs](const Tensor& cotangent) {
    std::vector<Tensor> leaves;
    for (const Tensor& input : inputs) {
      leaves.push_back(input.detach());
      if (input.requires_grad()) leaves.back().set_requires_grad(true);
    }
    const EnableGrad enable_grad;
    const Tensor again = function(leaves);
    if (again.requires_grad()) again.backward(cotangent);
    std::vector<Tensor> gradients;
    for (const Tensor& leaf : leaves) gradients.push_back(leaf.grad());
    gradients.emplace_back();
    return gradients;
  });
}

}  // namespace mutilde
