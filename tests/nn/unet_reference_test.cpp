// The UNet against the outputs and gradients of the original program (tests/data/README.md).
#include <fstream>
#include <ostream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "core/safetensors.h"
#include "nn/unet.h"
#include "support/devices.h"
#include "support/reference.h"
#include "support/reference_unet.h"

namespace mutilde {
namespace {

using nlohmann::json;

const std::string kData = MUTILDE_TEST_DATA;

struct UNetFile {
  explicit UNetFile(const std::string& name) : file(kData + "/" + name + ".safetensors") {
    std::ifstream stream(kData + "/conditioning.json");
    const json all = json::parse(stream)["zero_gradients"][name + ".safetensors"];
    largest_gradient = all["largest_gradient"];
    zero = all["zero"].get<std::vector<std::string>>();
  }

  bool is_zero(const std::string& name) const {
    return std::find(zero.begin(), zero.end(), name) != zero.end();
  }

  SafetensorsFile file;
  double largest_gradient = 0;
  std::vector<std::string> zero;
};

// Output and gradients of sum(out * g), in checkpoint layout by name, NHWC for images.
struct Result {
  Tensor out, grad_x, grad_low_res;
  std::vector<std::pair<std::string, Tensor>> gradients;
};

Result run(const UNetFile& reference, DType dtype, Device device, bool use_checkpoint,
           const std::string& t_name) {
  const SafetensorsFile& file = reference.file;
  UNetConfig config = test::reference_config(file);
  config.use_checkpoint = use_checkpoint;
  Generator random(1);
  UNet unet(config, random);
  unet.to(dtype);
  test::load_reference(file, unet);
  unet.to(device);
  const auto image = [&](const std::string& name) {
    return test::nchw_to_nhwc(file.read(name)).to(dtype).to(device);
  };
  const Tensor x = image("x").set_requires_grad(true);
  const Tensor y = file.has("y") ? file.read("y").to(device) : Tensor{};
  Tensor low_res;
  if (file.has("low_res")) low_res = image("low_res").set_requires_grad(true);
  Result result;
  result.out = unet.forward(x, file.read(t_name).to(device), y, low_res);
  result.out.backward(image("g"));
  result.grad_x = x.grad();
  if (low_res.defined()) result.grad_low_res = low_res.grad();
  for (const NamedParameter& parameter : unet.named_parameters()) {
    result.gradients.emplace_back(parameter.name,
                                  to_checkpoint_layout(parameter.value.grad(), parameter.layout));
  }
  return result;
}

struct Case {
  const char* file;
  DType dtype;
  double out_tolerance, gradient_tolerance;
};

void PrintTo(const Case& c, std::ostream* stream) { *stream << c.file; }

class UNetReference : public ::testing::TestWithParam<Case> {};

void expect_output_and_every_gradient(const Case& c, Device device) {
  const UNetFile reference(c.file);
  const Result result = run(reference, c.dtype, device, false, "timesteps");
  const SafetensorsFile& file = reference.file;
  EXPECT_TRUE(test::close(result.out, test::nchw_to_nhwc(file.read("out")), c.out_tolerance));
  EXPECT_TRUE(
      test::close(result.grad_x, test::nchw_to_nhwc(file.read("grad_x")), c.gradient_tolerance));
  if (file.has("grad_low_res")) {
    EXPECT_TRUE(test::close(result.grad_low_res, test::nchw_to_nhwc(file.read("grad_low_res")),
                            c.gradient_tolerance));
  }
  size_t compared = 0;
  for (const auto& [name, gradient] : result.gradients) {
    SCOPED_TRACE(name);
    const Tensor expected = file.read("grad." + name);
    if (reference.is_zero(name)) {
      // Mathematically zero (a constant in front of a norm, a key's bias):
      // both sides are round-off.
      EXPECT_TRUE(test::close(gradient, expected, 0, 1e-5 * reference.largest_gradient));
    } else {
      EXPECT_TRUE(test::close(gradient, expected, c.gradient_tolerance));
    }
    ++compared;
  }
  // Nothing of the file is left out either.
  const auto names = file.names();
  EXPECT_EQ(compared,
            static_cast<size_t>(std::count_if(names.begin(), names.end(), [](const auto& name) {
              return name.rfind("grad.", 0) == 0;
            })));
}

TEST_P(UNetReference, OutputAndEveryGradientAgree) {
  for (const Device device : devices()) expect_output_and_every_gradient(GetParam(), device);
}

constexpr DType f32 = DType::kFloat32, f64 = DType::kFloat64;
INSTANTIATE_TEST_SUITE_P(Files, UNetReference,
                         ::testing::Values(Case{"unet_a_minimal", f32, 2e-4, 1e-3},
                                           Case{"unet_a_minimal", f64, 1e-5, 1e-5},
                                           Case{"unet_b_scale_shift_heads_class", f32, 2e-4, 1e-3},
                                           Case{"unet_b_scale_shift_heads_class", f64, 1e-5, 1e-5},
                                           Case{"unet_c_pooling", f32, 2e-4, 1e-3},
                                           Case{"unet_c_pooling", f64, 1e-5, 1e-5},
                                           Case{"unet_d_super_resolution", f32, 2e-4, 1e-3},
                                           Case{"unet_d_super_resolution", f64, 1e-5, 1e-5},
                                           Case{"unet_h_sr_class_time", f32, 2e-5, 1e-4},
                                           Case{"unet_h_sr_class_time", f64, 1e-5, 1e-5}),
                         [](const auto& test) {
                           return std::string(test.param.file) + "_" + name_of(test.param.dtype);
                         });

TEST(UNetReference, TakesFractionalTimesteps) {
  const UNetFile reference("unet_h_sr_class_time");
  const Tensor expected = test::nchw_to_nhwc(reference.file.read("out_float"));
  for (const Device device : devices()) {
    const Result result = run(reference, DType::kFloat32, device, false, "timesteps_float");
    EXPECT_TRUE(test::close(result.out, expected, 2e-5));
  }
}

TEST(UNetReference, CheckpointingChangesNoGradient) {
  const UNetFile reference("unet_b_scale_shift_heads_class");
  // The gradients that meet at a block's input are added in another order, so they agree to float64
  // round-off of the largest and not bit for bit.
  const double atol = 1e-13 * reference.largest_gradient;
  for (const Device device : devices()) {
    const Result plain = run(reference, DType::kFloat64, device, false, "timesteps");
    const Result checkpointed = run(reference, DType::kFloat64, device, true, "timesteps");
    EXPECT_EQ(plain.out.to_vector<double>(), checkpointed.out.to_vector<double>());
    EXPECT_TRUE(test::close(checkpointed.grad_x, plain.grad_x, 0, atol));
    for (size_t i = 0; i < plain.gradients.size(); ++i) {
      EXPECT_TRUE(test::close(checkpointed.gradients[i].second, plain.gradients[i].second, 0, atol))
          << plain.gradients[i].first;
    }
  }
}

TEST(TimestepEmbedding, MatchesTheOriginalForEvenAndOddWidths) {
  const SafetensorsFile file(kData + "/timestep_embedding.safetensors");
  // Frequencies are float32, here and there, and two exponential functions may differ in the last
  // bit: 2^-24 of a frequency below 1, which a timestep of 999 multiplies.
  const double tolerance = 999 * std::ldexp(1.0, -24);
  int widths = 0;
  for (const std::string& name : file.names()) {
    if (name == "timesteps") continue;
    const int64_t width = std::stoll(name.substr(name.rfind('.') + 1));
    for (const Device device : devices()) {
      const Tensor t = file.read("timesteps").to(device);
      EXPECT_TRUE(test::close(timestep_embedding(t, width), file.read(name), 0, tolerance));
    }
    ++widths;
  }
  EXPECT_GE(widths, 2);
}

}  // namespace
}  // namespace mutilde
