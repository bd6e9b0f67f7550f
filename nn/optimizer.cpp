#include "nn/optimizer.h"

#include <algorithm>
#include <cmath>
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

void AdamW::step(double lr) {
  ++step_count_;
  std::vector<double> rates = options_.ema_rates;
  if (options_.ema_warmup) {
    const double warmup =
        (1.0 + static_cast<double>(step_count_)) / (10.0 + static_cast<double>(step_count_));
    for (double& rate : rates) rate = std::min(rate, warmup);
  }
  const AdamWStep step{
      lr, options_.beta1, options_.beta2, options_.adam_eps, options_.weight_decay, step_count_};
  std::vector<View> ema(rates.size());
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Tensor& value = parameters_[i].value;
    for (size_t rate = 0; rate < rates.size(); ++rate) ema[rate] = emas_[rate][i].value;
    AdamWBuffers buffers{value, first_moments_[i].value, second_moments_[i].value, {}, ema};
    if (const Tensor grad = value.grad(); grad.defined()) buffers.grad = grad;
    backend(value).adamw(buffers, step, rates);
  }
}

void AdamW::zero_grad() {
  for (const NamedParameter& parameter : parameters_) parameter.value.set_grad({});
}

double AdamW::gradient_norm() const {
  const NoGrad no_grad;
  std::vector<Tensor> squares;
  for (const NamedParameter& parameter : parameters_) {
    if (const Tensor grad = parameter.value.grad(); grad.defined())
      squares.push_back(sum(square(grad)).reshape({1}));
  }
  if (squares.empty()) return 0;
  double total = 0;  // read at once: each look at a number waits for the GPU
  for (const double value : concat(squares).to_vector<double>()) total += value;
  return std::sqrt(total);
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
