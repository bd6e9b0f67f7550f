// Module: a network, or a part of one, with named parameters.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/ops/ops.h"

namespace mutilde {

/// How a parameter is written into a checkpoint, which keeps PyTorch's order of axes.
enum class CheckpointLayout {
  kAsIs,
  kConv2d,     // ours [O, kH, kW, I], theirs [O, I, kH, kW]
  kPointwise,  // ours [O, I], theirs [O, I, 1] (a one-dimensional convolution of width 1)
};

struct NamedParameter {
  std::string name;  // "input_blocks.1.0.in_layers.2.weight"
  Tensor value;
  CheckpointLayout layout = CheckpointLayout::kAsIs;
};

class Module {
 public:
  Module() = default;
  Module(const Module&) = delete;  // the registry points into the object
  Module& operator=(const Module&) = delete;
  virtual ~Module() = default;

  /// Every parameter below this module, depth first in order of registration. The tensors are
  /// handles: writing through them changes the module.
  std::vector<NamedParameter> named_parameters() const;
  /// The number of scalars in all parameters.
  int64_t parameter_count() const;

  /// Converts every parameter; gradients are dropped. Handles taken before keep the old values.
  void to(DType dtype);
  void to(Device device);

  /// Training mode turns dropout on. Modules start in evaluation mode.
  void train(bool on = true);
  bool training() const { return training_; }

 protected:
  /// Makes `member` (a member of this module) a leaf that wants a gradient, and registers it.
  void add_parameter(const std::string& name, Tensor& member, Tensor value,
                     CheckpointLayout layout = CheckpointLayout::kAsIs);
  /// The child must live as long as this module (it is a member of it).
  void add_module(const std::string& name, Module& child);

 private:
  void collect(const std::string& prefix, std::vector<NamedParameter>& into) const;

  struct Registered {
    std::string name;
    Tensor* member;
    CheckpointLayout layout;
  };
  std::vector<Registered> parameters_;
  std::vector<std::pair<std::string, Module*>> children_;
  bool training_ = false;
};

/// The module's parameters in checkpoint layout, by name.
std::vector<std::pair<std::string, Tensor>> state_dict(
    const std::vector<NamedParameter>& parameters);

/// One parameter to or from its checkpoint layout, outside the graph. The first makes a copy
/// always; the second only where the order changes, else its result shares `value`'s storage.
Tensor to_checkpoint_layout(const Tensor& value, CheckpointLayout layout);
Tensor from_checkpoint_layout(const Tensor& value, CheckpointLayout layout);

/// Overwrites each parameter with `find(name)`, which gives a tensor in checkpoint layout, of any
/// floating dtype. Throws Error that names the parameter for an undefined tensor, ShapeError for a
/// wrong shape; nothing is overwritten then.
void load_state_dict(const std::vector<NamedParameter>& parameters,
                     const std::function<Tensor(const std::string& name)>& find);

}  // namespace mutilde
