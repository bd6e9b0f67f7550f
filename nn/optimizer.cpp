#include "nn/optimizer.h"

#include <algorithm>
#include <utility>

namespace mutilde {

namespace {

template <class Make>
std::vector<NamedParameter> buffers_like(const std::vector<NamedParameter>& parameters,
                                         const Make& make) {
  std::vector<NamedParameter> buffers;
  for (const NamedParameter& parameter : parameters) {
    buffers.push_back({parameter.name, make(parameter.value), parameter.layout});
  }
  return buffers;
}

}  // namespace

AdamW::AdamW(std::vector<NamedParameter> parameters, AdamWOptions options)
    : options_(std::move(options)), parameters_(std::move(parameters)) {
  for (double rate : options_.ema_rates) {
    if (!(rate >= 0 && rate < 1))
      fail<Error>("AdamW: ema rate {} given, one in [0, 1) expected", rate);
  }
  for (double beta : {options_.beta1, options_.beta2}) {
    if (!(beta >= 0 && beta < 1)) fail<Error>("AdamW: beta {} given, one in [0, 1) expected", beta);
  }
  const auto zeros = [](const Tensor& value) { return zeros_like(value); };
  first_moments_ = buffers_like(parameters_, zeros);
  second_moments_ = buffers_like(parameters_, zeros);
  for (size_t i = 0; i < options_.ema_rates.size(); ++i) {
    emas_.push_back(buffers_like(parameters_, [](const Tensor& value) { return value.clone(); }));
  }
}

void AdamW::step(double lr, const Tensor& only_if_finite, double grad_scale) {
  const int64_t count = step_count_ + 1;
  std::vector<double> rates = options_.ema_rates;
  if (options_.ema_warmup) {
    const double warmup = (1.0 + static_cast<double>(count)) / (10.0 + static_cast<double>(count));
    for (double& rate : rates) rate = std::min(rate, warmup);
  }
  AdamWStep step{lr,   options_.beta1, options_.beta2, options_.adam_eps, options_.weight_decay,
                 count};
  step.grad_scale = grad_scale;
  if (only_if_finite.defined()) step.only_if_finite = only_if_finite;

  std::vector<AdamWBuffers> buffers;
  std::vector<View> averages;  // of one parameter after the other
  averages.reserve(parameters_.size() * rates.size());
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const std::span<const View> of_parameter(averages.data() + averages.size(), emas_.size());
    for (const auto& ema : emas_) averages.push_back(ema[i].value);
    const Tensor& value = parameters_[i].value;
    buffers.push_back(
        {value, first_moments_[i].value, second_moments_[i].value, {}, of_parameter, {}});
    if (const Tensor grad = value.grad(); grad.defined()) buffers.back().grad = grad;
    if (const Tensor copy = value.short_copy(); copy.defined()) buffers.back().short_copy = copy;
  }
  if (!parameters_.empty()) backend(parameters_.front().value).adamw(buffers, step, rates);
  step_count_ = count;
}

void AdamW::zero_grad() {
  for (const NamedParameter& parameter : parameters_) parameter.value.set_grad({});
}

Tensor AdamW::squared_gradient_norm() const {
  if (parameters_.empty()) return Tensor::zeros({}, DType::kFloat64);
  std::vector<ConstView> gradients;
  for (const NamedParameter& parameter : parameters_) {
    if (const Tensor grad = parameter.value.grad(); grad.defined()) gradients.push_back(grad);
  }
  const Tensor& first = parameters_.front().value;
  const Tensor square = Tensor::empty({}, DType::kFloat64, first.device());
  backend(first).sum_of_squares(gradients, square);
  return square;
}

SwappedParameters::SwappedParameters(const std::vector<NamedParameter>& parameters,
                                     const std::vector<NamedParameter>& others)
    : parameters_(parameters) {
  // All memory first, so that nothing can run out between two copies.
  for (const NamedParameter& parameter : parameters_) saved_.push_back(parameter.value.clone());
  try {
    for (size_t i = 0; i < parameters_.size(); ++i) parameters_[i].value.copy_(others.at(i).value);
  } catch (...) {  // no destructor runs after this
    put_back();
    throw;
  }
}

SwappedParameters::~SwappedParameters() { put_back(); }

void SwappedParameters::put_back() {
  for (size_t i = 0; i < parameters_.size(); ++i) parameters_[i].value.copy_(saved_[i]);
}

}  // namespace mutilde
