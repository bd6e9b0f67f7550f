// The playground's numbers from a program of this machine.
//   playground_native MODEL <requests.json >answers.json
// Requests: a list of objects, the controls of bridge.h by their names and a "kind":
//   "forward"  with "x_0" (its pixels), "height", "width" and "channels"
//   "sample"   with "float64": true for exact arithmetic, as far as that goes; all steps are taken
#include <iostream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "playground/bridge.h"

namespace {

using namespace mutilde;
using nlohmann::json;

json forward(const json& request) {
  playground::ForwardControls controls;
  request.at("schedule").get_to(controls.schedule);
  request.at("t").get_to(controls.t);
  request.at("seed").get_to(controls.seed);
  request.at("error").get_to(controls.error);
  request.at("clip").get_to(controls.clip);
  const Tensor x_0 = Tensor::from<float>(
      {1, request.at("height"), request.at("width"), request.at("channels")}, request.at("x_0"));
  const playground::ForwardResult result = playground::run_forward(x_0, controls);
  return {{"x_t", result.x_t.to_vector<float>()},
          {"x_0_hat", result.x_0_hat.to_vector<float>()},
          {"mu_tilde", result.mu_tilde.to_vector<float>()},
          {"mu_theta", result.mu_theta.to_vector<float>()},
          {"max_difference", result.max_difference},
          {"mu_tilde_error", result.mu_tilde_error},
          {"mu_theta_error", result.mu_theta_error}};
}

json sample(const json& request, const LoadedModel& model) {
  playground::SamplingControls controls;
  request.at("schedule").get_to(controls.schedule);
  request.at("steps").get_to(controls.steps);
  request.at("ddim").get_to(controls.ddim);
  request.at("eta").get_to(controls.eta);
  request.at("clip").get_to(controls.clip);
  request.at("seed").get_to(controls.seed);
  request.at("count").get_to(controls.count);
  const DType dtype = request.value("float64", false) ? DType::kFloat64 : DType::kFloat32;
  model.unet->to(dtype);
  playground::Sampling sampling(model, controls, dtype);
  while (!sampling.done()) sampling.step();
  return {{"x", sampling.x_t().to_vector<double>()},
          {"x_0_hat", sampling.x_0_hat().to_vector<double>()}};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: playground_native MODEL <requests.json >answers.json\n");
    return 2;
  }
  try {
    const LoadedModel model = load_model(argv[1]);
    json answers = json::array();
    for (const json& request : json::parse(std::cin)) {
      answers.push_back(request.at("kind") == "forward" ? forward(request)
                                                        : sample(request, model));
    }
    std::cout << answers << "\n";
  } catch (const std::exception& error) {
    fmt::print(stderr, "playground_native: {}\n", error.what());
    return 2;
  }
}
