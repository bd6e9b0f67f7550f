// One training step and one sampling step of the three presets, on a fixed
// batch of random 32x32 RGB images.
//
//   step_bench --preset small|medium|cifar --mode train|sample [--steps N] [--batch N]   prints a
//   JSON line step_bench ... --serve      prints "ready FLOPS BATCH", then for each line on stdin
//   runs a step and prints
//                               its milliseconds
//   step_bench --peak           prints the machine's float32 FMA peak in GFLOP/s, all threads
//
// A training step is forward, loss, backward, AdamW and one EMA update;
// a sampling step is a forward pass without gradients and the step from x_t to x_{t-1}.
// scripts/bench.sh pairs this with the peer.
#include <algorithm>
#include <chrono>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "bench/peak.h"
#include "core/ops/ops.h"
#include "nn/optimizer.h"
#include "nn/unet.h"

namespace {

using namespace mutilde;

struct Preset {
  UNetConfig config;
  int64_t batch = 0;
  double forward_multiply_adds = 0;  // an image
};

Preset preset_named(const std::string& name) {
  Preset preset;
  UNetConfig& config = preset.config;
  if (name == "small") {
    config.model_channels = 32;
    config.channel_mult = {1, 2, 2};
    config.num_res_blocks = 1;
    preset.batch = 32;
    preset.forward_multiply_adds = 288e6;
  } else if (name == "medium") {
    config.model_channels = 64;
    config.num_res_blocks = 2;
    preset.batch = 16;
    preset.forward_multiply_adds = 1626e6;
  } else if (name == "cifar") {
    config.out_channels = 6;
    preset.batch = 4;
    preset.forward_multiply_adds = 8387e6;
  } else {
    fail<Error>("--preset {} given, small, medium or cifar expected", name);
  }
  return preset;
}

class Training {
 public:
  Training(const Preset& preset, int64_t batch)
      : random_(1),
        unet_(preset.config, random_),
        optimizer_(unet_.named_parameters(), {.ema_rates = {0.9999}}),
        x_t_(random_.normal({batch, 32, 32, 3})),
        eps_(random_.normal({batch, 32, 32, 3})),
        t_(random_.integers({batch}, 1000)) {
    unet_.train();
  }

  void step() {
    const Tensor output = unet_.forward(x_t_, t_);
    Tensor loss = mean_squared_error(slice_channels(output, 0, 3), eps_);
    if (output.size(-1) == 6) loss = loss + 0.001 * mean(square(slice_channels(output, 3, 6)));
    loss.backward();
    optimizer_.step(1e-4);
    optimizer_.zero_grad();
  }

 private:
  Generator random_;
  UNet unet_;
  AdamW optimizer_;
  Tensor x_t_, eps_, t_;
};

class Sampling {
 public:
  Sampling(const Preset& preset, int64_t batch)
      : random_(1),
        unet_(preset.config, random_),
        x_t_(random_.normal({batch, 32, 32, 3})),
        t_(Tensor::full({batch}, 500, DType::kInt64)) {}

  void step() {
    const NoGrad no_grad;
    const Tensor output = unet_.forward(x_t_, t_);
    const Tensor eps_theta = slice_channels(output, 0, 3);
    // Halfway through the linear schedule: eq. 9 solved for x_0, clipped;
    // the posterior's mean; noise.
    const Tensor x_0 = clamp(3.6 * x_t_ - 3.5 * eps_theta, -1, 1);
    x_t_ = 0.01 * x_0 + 0.99 * x_t_ + 0.1 * random_.normal(x_t_.shape());
  }

 private:
  Generator random_;
  UNet unet_;
  Tensor x_t_, t_;
};

double milliseconds(const std::function<void()>& run) {
  const auto begin = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
      .count();
}

int run(const std::vector<std::string>& arguments) {
  std::string preset_name = "small", mode = "train";
  int steps = 5;
  int64_t batch = 0;
  bool serve = false;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& flag = arguments[i];
    const auto value = [&]() -> const std::string& {
      if (i + 1 == arguments.size()) fail<Error>("{} needs a value", flag);
      return arguments[++i];
    };
    if (flag == "--peak") {
      std::cout << peak_gflops(thread_count()) << std::endl;
      return 0;
    }
    if (flag == "--preset") {
      preset_name = value();
    } else if (flag == "--mode") {
      mode = value();
    } else if (flag == "--steps") {
      steps = std::stoi(value());
    } else if (flag == "--batch") {
      batch = std::stoll(value());
    } else if (flag == "--serve") {
      serve = true;
    } else {
      fail<Error>("unknown flag {}; --preset, --mode, --steps, --batch, --serve or --peak expected",
                  flag);
    }
  }
  const Preset preset = preset_named(preset_name);
  if (batch == 0) batch = preset.batch;
  std::function<void()> step;
  if (mode == "train") {
    step = [training = std::make_shared<Training>(preset, batch)] { training->step(); };
  } else if (mode == "sample") {
    step = [sampling = std::make_shared<Sampling>(preset, batch)] { sampling->step(); };
  } else {
    fail<Error>("--mode {} given, train or sample expected", mode);
  }
  const double first_ms = milliseconds(step);
  for (int i = 0; i < 2; ++i) step();
  const double flops =
      2 * preset.forward_multiply_adds * static_cast<double>(batch) * (mode == "train" ? 3 : 1);
  if (serve) {
    std::cout << "ready " << flops << " " << batch << std::endl;
    for (std::string line; std::getline(std::cin, line);)
      std::cout << milliseconds(step) << std::endl;
    return 0;
  }
  std::vector<double> times;
  for (int i = 0; i < steps; ++i) times.push_back(milliseconds(step));
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2];
  std::cout << nlohmann::json{{"preset", preset_name},
                              {"mode", mode},
                              {"batch", batch},
                              {"ms", median},
                              {"first_ms", first_ms},
                              {"gflops", flops / median / 1e6},
                              {"peak_mb", static_cast<double>(
                                              backend(Device::cpu()).memory_stats().peak_bytes) /
                                              1e6}}
                   .dump()
            << std::endl;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::cerr << "step_bench: error: " << error.what() << "\n";
    return 2;
  }
}
