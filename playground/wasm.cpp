// The bridge for JavaScript. worker.js calls what is bound here; what is thrown reaches it as an
// Error with the message.
#include <emscripten/bind.h>

#include "playground/bridge.h"

namespace mutilde::playground {
namespace {

using emscripten::val;

template <class F>
decltype(auto) guarded(const F& f) {
  try {
    return f();
  } catch (const std::exception& error) {
    val::global("Error").new_(std::string(error.what())).throw_();
  }
}

/// A copy as a Float32Array: a view would move with the heap.
val to_js(const Tensor& x) {
  return val(emscripten::typed_memory_view(static_cast<size_t>(x.numel()), x.data<float>()))
      .call<val>("slice");
}

/// The model that the build embeds.
const LoadedModel& model() {
  static const LoadedModel loaded = load_model("model.safetensors");
  return loaded;
}

val describe_model() {
  const LoadedModel& loaded = guarded([]() -> const LoadedModel& { return model(); });
  double parameters = 0;
  for (const NamedParameter& parameter : loaded.unet->named_parameters()) {
    parameters += static_cast<double>(parameter.value.numel());
  }
  val description = val::object();
  description.set("size", static_cast<int>(loaded.settings.image_size));
  description.set("channels", static_cast<int>(loaded.settings.image_channels));
  description.set("schedule", loaded.settings.noise_schedule);
  description.set("parameters", parameters);
  description.set("step", static_cast<double>(loaded.step));
  return description;
}

val forward(const val& x_0, int height, int width, int channels, const ForwardControls& controls) {
  const ForwardResult result = guarded([&] {
    const auto pixels = emscripten::convertJSArrayToNumberVector<float>(x_0);
    return run_forward(Tensor::from<float>({1, height, width, channels}, pixels), controls);
  });
  val answer = val::object();
  answer.set("x_t", to_js(result.x_t));
  answer.set("x_0_hat", to_js(result.x_0_hat));
  answer.set("mu_tilde", to_js(result.mu_tilde));
  answer.set("mu_theta", to_js(result.mu_theta));
  answer.set("x_0_range", result.x_0_range);
  answer.set("alpha_bar_t", result.alpha_bar_t);
  answer.set("sqrt_recip_alpha_bar_minus_one_t", result.sqrt_recip_alpha_bar_minus_one_t);
  answer.set("mu_tilde_x_0_t", result.mu_tilde_x_0_t);
  answer.set("max_cut", result.max_cut);
  answer.set("max_difference", result.max_difference);
  answer.set("mu_tilde_error", result.mu_tilde_error);
  answer.set("mu_theta_error", result.mu_theta_error);
  return answer;
}

std::shared_ptr<Sampling> start(const SamplingControls& controls) {
  return guarded([&] { return std::make_shared<Sampling>(model(), controls); });
}

/// Takes the next step and tells what came of it.
val step(Sampling& sampling) {
  val answer = val::object();
  answer.set("x_t", to_js(sampling.x_t()));
  guarded([&] { sampling.step(); });
  answer.set("x_0_hat", to_js(sampling.x_0_hat()));
  answer.set("x_prev", to_js(sampling.x_t()));
  answer.set("x_0_range", range_numbers(sampling.x_0_hat()));
  answer.set("schedule_t", static_cast<int>(sampling.schedule_t()));
  answer.set("network_t", static_cast<int>(sampling.network_t()));
  answer.set("alpha_bar_t", sampling.alpha_bar_t());
  answer.set("done", sampling.done());
  return answer;
}

}  // namespace

EMSCRIPTEN_BINDINGS(playground) {
  emscripten::value_object<RangeNumbers>("RangeNumbers")
      .field("mean_abs", &RangeNumbers::mean_abs)
      .field("max_abs", &RangeNumbers::max_abs)
      .field("share_outside", &RangeNumbers::share_outside);
  emscripten::value_object<ForwardControls>("ForwardControls")
      .field("schedule", &ForwardControls::schedule)
      .field("t", &ForwardControls::t)
      .field("seed", &ForwardControls::seed)
      .field("error", &ForwardControls::error)
      .field("clip", &ForwardControls::clip);
  emscripten::value_object<SamplingControls>("SamplingControls")
      .field("schedule", &SamplingControls::schedule)
      .field("steps", &SamplingControls::steps)
      .field("ddim", &SamplingControls::ddim)
      .field("eta", &SamplingControls::eta)
      .field("clip", &SamplingControls::clip)
      .field("seed", &SamplingControls::seed)
      .field("count", &SamplingControls::count);
  emscripten::class_<Sampling>("Sampling").smart_ptr<std::shared_ptr<Sampling>>("SamplingPointer");
  emscripten::function("describe_model", &describe_model);
  emscripten::function("forward", &forward);
  emscripten::function("start", &start);
  emscripten::function("step", &step);
}

}  // namespace mutilde::playground
