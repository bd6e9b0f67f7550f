#include "nn/module.h"

#include <utility>

namespace mutilde {

void Module::collect(const std::string& prefix, std::vector<NamedParameter>& into) const {
  for (const auto& [name, member, layout] : parameters_)
    into.push_back({prefix + name, *member, layout});
  for (const auto& [name, child] : children_) child->collect(prefix + name + ".", into);
}

std::vector<NamedParameter> Module::named_parameters() const {
  std::vector<NamedParameter> all;
  collect("", all);
  return all;
}

int64_t Module::parameter_count() const {
  int64_t count = 0;
  for (const NamedParameter& parameter : named_parameters()) count += parameter.value.numel();
  return count;
}

void Module::train(bool on) {
  training_ = on;
  for (const auto& [name, child] : children_) child->train(on);
}

void Module::add_parameter(const std::string& name, Tensor& member, Tensor value,
                           CheckpointLayout layout) {
  member = value.detach().set_requires_grad(true);
  parameters_.push_back({name, &member, layout});
}

void Module::to(DType dtype) {
  for (Registered& parameter : parameters_) {
    *parameter.member = parameter.member->detach().to(dtype).set_requires_grad(true);
  }
  for (const auto& [name, child] : children_) child->to(dtype);
}

void Module::to(Device device) {
  for (Registered& parameter : parameters_) {
    *parameter.member = parameter.member->detach().to(device).set_requires_grad(true);
  }
  for (const auto& [name, child] : children_) child->to(device);
}

void Module::add_module(const std::string& name, Module& child) {
  children_.emplace_back(name, &child);
}

Tensor to_checkpoint_layout(const Tensor& value, CheckpointLayout layout) {
  const NoGrad no_grad;
  const Tensor plain = value.detach();
  switch (layout) {
    case CheckpointLayout::kAsIs:
      return plain.clone();
    case CheckpointLayout::kConv2d:
      return permute(plain, {0, 3, 1, 2});
    case CheckpointLayout::kPointwise:
      return plain.clone().reshape({plain.size(0), plain.size(1), 1});
  }
  return {};
}

Tensor from_checkpoint_layout(const Tensor& value, CheckpointLayout layout) {
  const NoGrad no_grad;
  const Tensor plain = value.detach();
  switch (layout) {
    case CheckpointLayout::kAsIs:
      return plain;
    case CheckpointLayout::kConv2d:
      return plain.rank() == 4 ? permute(plain, {0, 2, 3, 1}) : plain;
    case CheckpointLayout::kPointwise:
      return plain.rank() == 3 && plain.size(2) == 1 ? plain.reshape({plain.size(0), plain.size(1)})
                                                     : plain;
  }
  return {};
}

std::vector<std::pair<std::string, Tensor>> state_dict(
    const std::vector<NamedParameter>& parameters) {
  std::vector<std::pair<std::string, Tensor>> state;
  for (const NamedParameter& parameter : parameters) {
    state.emplace_back(parameter.name, to_checkpoint_layout(parameter.value, parameter.layout));
  }
  return state;
}

void load_state_dict(const std::vector<NamedParameter>& parameters,
                     const std::function<Tensor(const std::string& name)>& find) {
  const NoGrad no_grad;
  std::vector<Tensor> values;
  for (const NamedParameter& parameter : parameters) {
    const Tensor found = find(parameter.name);
    if (!found.defined()) fail<Error>("load: parameter '{}' is missing", parameter.name);
    const Tensor value =
        from_checkpoint_layout(found, parameter.layout).to(parameter.value.dtype());
    if (!(value.shape() == parameter.value.shape())) {
      fail<ShapeError>("load: parameter '{}' has shape {}, the model expects {}", parameter.name,
                       found.shape(),
                       to_checkpoint_layout(parameter.value, parameter.layout).shape());
    }
    values.push_back(value);
  }
  for (size_t i = 0; i < values.size(); ++i) parameters[i].value.copy_(values[i]);
}

}  // namespace mutilde
