// mutilde bench: how long a step takes, and where the time goes.
#include <algorithm>
#include <chrono>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "app/command_line.h"
#include "app/commands.h"
#include "app/device.h"
#include "app/plot.h"
#include "app/progress.h"
#include "core/cpu/peak.h"
#include "core/cpu_isa.h"
#include "core/ops/ops.h"
#include "core/precision.h"
#include "core/profiling_backend.h"
#include "data/image_io.h"
#include "diffusion/settings.h"
#include "nn/optimizer.h"

namespace mutilde::app {

namespace {

struct BenchFlags {
  Settings settings;  // those on the command line
  std::string preset = "small", mode = "train", device = "auto", precision = "fp32", picture;
  int64_t steps = 5;
  bool profile = false, shapes = false, serve = false;
};

/// A fixed batch of noise: what a step costs does not depend on its numbers.
struct Batch {
  Batch(const Settings& settings, Generator& random, Device device)
      : x_t(random
                .normal({settings.batch_size, settings.image_size, settings.image_size,
                         settings.image_channels})
                .to(device)),
        eps(random.normal(x_t.shape()).to(device)),
        t(random.integers({settings.batch_size}, settings.diffusion_steps).to(device)) {
    if (settings.small_size > 0) {
      low_res = random
                    .normal({settings.batch_size, settings.small_size, settings.small_size,
                             settings.image_channels})
                    .to(device);
    }
    if (settings.class_cond)
      labels = random.integers({settings.batch_size}, settings.num_classes).to(device);
  }
  Tensor x_t, eps, t, labels, low_res;
};

/// Forward, loss, backward, AdamW and one moving average. In float16 as a run would do it: the loss scaled, and the
/// step taken if the gradient is finite, as it is with this scale.
std::function<void()> training_step(const Settings& settings, Device device) {
  Generator random(1);
  const std::shared_ptr<UNet> unet = make_unet(settings, random);
  unet->to(device);
  unet->train();
  const auto optimizer =
      std::make_shared<AdamW>(unet->named_parameters(), AdamWOptions{.ema_rates = {0.9999}});
  return [=, batch = Batch(settings, random, device), C = settings.image_channels] {
    const Tensor output = unet->forward(batch.x_t, batch.t, batch.labels, batch.low_res);
    Tensor loss = mean_squared_error(slice_channels(output, 0, C), batch.eps);
    if (output.size(-1) == 2 * C) {  // the learned variance takes part
      loss = loss + 0.001 * mean(square(slice_channels(output, C, 2 * C)));
    }
    if (product_precision() == Precision::kFloat16) {
      constexpr double kScale = 0x1p16;
      (loss * kScale).backward();
      optimizer->step(1e-4, optimizer->squared_gradient_norm(), 1 / kScale);
    } else {
      loss.backward();
      optimizer->step(1e-4);
    }
    optimizer->zero_grad();
  };
}

/// A forward pass without gradients, and the step from x_t to x_{t-1}: eq. 9 solved for x_0 halfway
/// through the linear schedule, clipped, the posterior's mean, noise.
std::function<void()> sampling_step(const Settings& settings, Device device) {
  auto random = std::make_shared<Generator>(1);
  const std::shared_ptr<UNet> unet = make_unet(settings, *random);
  unet->to(device);
  return [=, batch = Batch(settings, *random, device), C = settings.image_channels]() mutable {
    const NoGrad no_grad;
    const Tensor output = unet->forward(batch.x_t, batch.t, batch.labels, batch.low_res);
    const Tensor x_0 = clamp(3.6 * batch.x_t - 3.5 * slice_channels(output, 0, C), -1, 1);
    batch.x_t =
        0.01 * x_0 + 0.99 * batch.x_t + 0.1 * random->normal(x_0.shape(), DType::kFloat32, device);
  };
}

double milliseconds(const std::function<void()>& run, Device device) {
  const auto begin = std::chrono::steady_clock::now();
  run();
  backend(device).synchronize();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
      .count();
}

double best_ms(const std::function<void()>& run, Device device) {
  double best = milliseconds(run, device);
  for (int i = 0; i < 4; ++i) best = std::min(best, milliseconds(run, device));
  return best;
}

// What the machine can do at most, measured now.

/// Of a GPU it is what the largest of our own products reaches, for want of another way to measure it.
double roof_gflops(Device device) {
  if (device == Device::cpu()) return cpu_isa().kernels->peak_gflops(kernel_threads());
  const NoGrad no_grad;
  constexpr int64_t n = 8192;
  const Tensor weight = Generator(1).normal({n, n}, DType::kFloat32, device);
  const Tensor x = weight.to(factor_dtype(DType::kFloat32));
  return 2.0 * n * n * n / best_ms([&] { linear(x, weight, {}); }, device) * 1e-6;
}

/// GB/s; of a GPU those of a copy.
double roof_bandwidth(Device device) {
  if (device == Device::cpu()) return peak_bandwidth(kernel_threads());
  const Tensor from = Tensor::zeros({int64_t{1} << 28}, DType::kFloat32, device), to = from.clone();
  return 2.0 * static_cast<double>(from.bytes()) / best_ms([&] { to.copy_(from); }, device) * 1e-6;
}

// The profile.

/// What kernels did in so many steps, a row each, the longest first.
struct Profile {
  struct Row {
    std::string name;
    KernelProfile did;
  };
  std::vector<Row> rows;
  KernelProfile total;
};

Profile profile_of(const std::function<void()>& step, Device device, int64_t steps, bool shapes) {
  const Profiling profiling(device);
  for (int64_t i = 0; i < steps; ++i) step();
  std::map<std::string, KernelProfile> by_name;
  Profile profile;
  for (const auto& [key, did] : profiling.noted().profiles()) {
    by_name[shapes ? key.first + " " + key.second : key.first] += did;
    profile.total += did;
  }
  for (const auto& [name, did] : by_name) profile.rows.push_back({name, did});
  std::sort(profile.rows.begin(), profile.rows.end(),
            [](const auto& a, const auto& b) { return a.did.seconds > b.did.seconds; });
  return profile;
}

/// The least time for a kernel: its arithmetic at the peak or its bytes at the memory's speed.
double floor_seconds(const KernelProfile& did, double gflops, double bandwidth) {
  return std::max(did.operations / gflops, did.bytes / bandwidth) * 1e-9;
}

void print_profile(const Profile& profile, int64_t steps, double step_ms, double gflops,
                   double bandwidth) {
  size_t width = 24;
  for (const auto& row : profile.rows) width = std::max(width, row.name.size());
  fmt::print("\n{:<{}}  {:>6}{:>10}{:>9}{:>11}{:>10}{:>9}\n", "kernel, a step", width, "calls",
             "ms", "of step", "GFLOP/s", "GB/s", "floor ms");
  const double n = static_cast<double>(steps);
  for (const auto& [name, did] : profile.rows) {
    fmt::print("{:<{}}  {:>6}{:>10.2f}{:>8.1f}%{:>11.1f}{:>10.1f}{:>9.2f}\n", name, width,
               did.calls / steps, did.seconds / n * 1e3, did.seconds / n * 1e5 / step_ms,
               did.operations / did.seconds * 1e-9, did.bytes / did.seconds * 1e-9,
               floor_seconds(did, gflops, bandwidth) / n * 1e3);
  }
  const double outside = step_ms - profile.total.seconds / n * 1e3;
  fmt::print("{:<{}}  {:>6}{:>10.2f}{:>8.1f}%\n", "outside of kernels", width, "", outside,
             100 * outside / step_ms);
  fmt::print(
      "\nfloor: operations at {:.0f} GFLOP/s or bytes at {:.1f} GB/s, whichever takes longer; "
      "both\n"
      "measured just now. Convolutions count as direct sums, of which Winograd's way needs a "
      "part.\n",
      gflops, bandwidth);
}

Image draw_profile(const Profile& profile, int64_t steps, double gflops, double bandwidth,
                   const std::string& title) {
  std::vector<Bar> bars;
  const double to_ms = 1e3 / static_cast<double>(steps);
  for (const auto& [name, did] : profile.rows) {
    bars.push_back({name, did.seconds * to_ms, floor_seconds(did, gflops, bandwidth) * to_ms});
  }
  return draw_bars(title, "milliseconds a step; dark: the floor", bars);
}

// The command.

CommandLine bench_command_line(BenchFlags& flags) {
  CommandLine line("bench", "Measures a step of training or sampling on a batch of noise.",
                   "mutilde bench [flags]",
                   "  mutilde bench --preset medium\n"
                   "  mutilde bench --preset small --profile --picture profile.png\n");
  line.group("Run");
  const auto names = preset_names();
  line.add("--preset", flags.preset, "the model; any flag overrides its part", "",
           {names.begin(), names.end()});
  line.add("--mode", flags.mode,
           "train: forward, loss, backward, optimiser; sample: x_t to x_{t-1}", "",
           {"train", "sample"});
  line.add("--device", flags.device, kDeviceHelp, "DEVICE");
  line.add("--precision", flags.precision, kPrecisionHelp, "", kPrecisions);
  line.add("--steps", flags.steps, "how many steps; the median counts");
  line.add("--batch_size", flags.settings.batch_size,
           "images in a batch; 0: 32, 16 and 4 for small, medium and cifar");
  line.add("--profile", flags.profile,
           "a table of all kernels: times, and the least they could be");
  line.add("--shapes", flags.shapes, "with --profile: a row for each shape");
  line.add("--picture", flags.picture, "with --profile: the table as a picture", "PNG");
  line.add(
      "--serve", flags.serve,
      "say \"ready OPERATIONS BATCH PEAK\", then run a step for each line read and answer with "
      "its milliseconds; at the end, how many bytes tensors held at most");
  line.group("Model");
  line.add_settings(flags.settings, SettingGroup::kModel);
  return line;
}

Settings settings_of(const CommandLine& line, const BenchFlags& flags) {
  Settings settings;
  apply_preset(settings, flags.preset);
  settings.batch_size = flags.preset == "small" ? 32 : flags.preset == "medium" ? 16 : 4;
  for (const SettingField* field : line.given_settings())
    copy_setting(flags.settings, settings, *field);
  validate(settings);
  if (settings.class_cond && settings.num_classes == 0)
    fail<UsageError>("--class_cond needs --num_classes, since there is no data to count them in");
  if (flags.steps < 1) fail<UsageError>("--steps is {}, at least 1 expected", flags.steps);
  if (!flags.profile && (flags.shapes || !flags.picture.empty()))
    fail<UsageError>("--shapes and --picture need --profile");
  return settings;
}

/// What the share of the peak counts.
double product_operations(const std::function<void()>& step, Device device) {
  const Profiling profiling(device);
  step();
  return profiling.noted().product_operations();
}

}  // namespace

int bench_command(const std::vector<std::string>& arguments) {
  BenchFlags flags;
  CommandLine line = bench_command_line(flags);
  if (!line.parse(arguments)) return 0;
  const Settings settings = settings_of(line, flags);
  const Device device = find_device(flags.device);
  use_precision(flags.precision, device);

  const std::function<void()> work =
      flags.mode == "train" ? training_step(settings, device) : sampling_step(settings, device);
  const auto step = [&] { backend(device).launch_together(work); };
  const double first_ms = milliseconds(step, device);
  step();
  const double operations = product_operations(step, device);
  const double gflops = roof_gflops(device);
  backend(device).reset_peak_memory();  // forgets what that took
  if (flags.serve) {
    std::cout << "ready " << operations << " " << settings.batch_size << " " << gflops << std::endl;
    for (std::string request; std::getline(std::cin, request);)
      std::cout << milliseconds(step, device) << std::endl;
    std::cout << "tensors held " << backend(device).memory_stats().peak_bytes << std::endl;
    return 0;
  }
  std::vector<double> times;
  for (int64_t i = 0; i < flags.steps; ++i) times.push_back(milliseconds(step, device));
  std::nth_element(times.begin(), times.begin() + flags.steps / 2, times.end());
  const double ms = times[static_cast<size_t>(flags.steps / 2)];
  const std::string where = device == Device::cpu()
                                ? fmt::format("{} threads, {}", kernel_threads(), cpu_isa().name)
                                : device.to_string();
  const std::string title = fmt::format("{}, {}, batch {}, {}, {}", flags.preset, flags.mode,
                                        settings.batch_size, where, flags.precision);
  fmt::print(
      "{}\n{:.1f} ms a step (median of {}), {:.1f} images/s, {:.0f} % of the peak of {:.0f} "
      "GFLOP/s\nfirst step {:.0f} ms; tensors held {} at most\n",
      title, ms, flags.steps, static_cast<double>(settings.batch_size) / ms * 1e3,
      100 * operations / (ms * 1e6 * gflops), gflops, first_ms,
      bytes_text(static_cast<double>(backend(device).memory_stats().peak_bytes)));
  if (!flags.profile) return 0;

  const Profile profile = profile_of(step, device, flags.steps, flags.shapes);
  const double bandwidth = roof_bandwidth(device);
  print_profile(profile, flags.steps, ms, gflops, bandwidth);
  if (!flags.picture.empty()) {
    write_png(flags.picture, draw_profile(profile, flags.steps, gflops, bandwidth, title));
    fmt::print("\nwrote {}\n", flags.picture);
  }
  return 0;
}

}  // namespace mutilde::app
