// mutilde sample: images from a checkpoint.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <vector>

#include "app/command_line.h"
#include "app/commands.h"
#include "app/device.h"
#include "app/loading.h"
#include "app/low_res.h"
#include "app/progress.h"
#include "app/sampling.h"
#include "app/strip.h"
#include "data/image_io.h"
#include "data/npz.h"

namespace fs = std::filesystem;

namespace mutilde::app {

namespace {

struct SampleFlags : ModelFlags {
  std::string low_res, out, png_dir, npz, progressive;
  int64_t num_samples = 16, label = -1;
  bool use_ddim = false;
  double eta = 0;
};

CommandLine sample_command_line(SampleFlags& flags) {
  CommandLine line(
      "sample", "Makes images with a trained model. The checkpoint alone says what the model is.",
      "mutilde sample CHECKPOINT [flags]",
      "  mutilde sample run --num_samples 64 --out samples.png\n"
      "  mutilde sample run --use_ddim --timestep_respacing ddim50 --npz samples.npz\n"
      "  mutilde sample run --num_samples 4 --progressive steps.png\n");
  add_checkpoint(line, flags);
  line.group("What to make");
  line.add("--num_samples", flags.num_samples, "how many images");
  line.add("--class", flags.label, "the class of all of them; -1: one class after the other");
  line.add("--seed", flags.seed, "the same seed makes the same images");
  line.add("--low_res,--base_samples", flags.low_res,
           "super-resolution: the images to enlarge, a folder or an .npz", "DATA");
  line.group("How");
  line.add("--use_ddim", flags.use_ddim, "DDIM instead of DDPM: better with few steps");
  line.add("--eta", flags.eta, "with DDIM: how much noise, from 0 to 1");
  add_model_flags(line, flags);
  line.group("Output");
  line.add("--out", flags.out, "a grid of the images; samples.png if no other output is asked for",
           "PNG");
  line.add("--png_dir", flags.png_dir, "a folder for single images", "FOLDER");
  line.add("--npz", flags.npz, "numpy arrays: arr_0 uint8 [N,H,W,C], arr_1 the classes", "FILE");
  line.add("--progressive", flags.progressive,
           "a strip a sample that shows x_t, and below it the predicted x_0, from noise to image",
           "PNG");
  add_foreign_model(line, flags);
  return line;
}

void check_flags(const CommandLine& line, const SampleFlags& flags) {
  check_model_flags(line, flags);
  constexpr int64_t kMost = 10'000'000;  // they are all in memory at the end
  if (flags.num_samples < 1)
    fail<UsageError>("--num_samples is {}, at least 1 expected", flags.num_samples);
  if (flags.num_samples > kMost)
    fail<UsageError>("--num_samples is {}, at most {} expected", flags.num_samples, kMost);
  if (flags.label < -1)
    fail<UsageError>("--class is {}, a class from 0, or -1, expected", flags.label);
  if (!(flags.eta >= 0 && flags.eta <= 1))
    fail<UsageError>("--eta is {}, a number from 0 to 1 expected", flags.eta);
  if (line.given("--eta") && !flags.use_ddim)
    fail<UsageError>("--eta is DDIM's: give --use_ddim too");
  for (const std::string& path : {flags.out, flags.npz, flags.progressive}) check_output_file(path);
  if (!flags.png_dir.empty() && fs::exists(flags.png_dir) && !fs::is_directory(flags.png_dir)) {
    fail<FileError>("--png_dir {}: this is not a folder", flags.png_dir);
  }
}

/// What the model is conditioned on, a row a sample.
struct Conditions {
  Tensor y, low_res;
};

Tensor repeated(const Tensor& x, int64_t count) {
  const Tensor result = Tensor::empty(x.shape().with(0, count), x.dtype());
  for (int64_t i = 0; i < count; ++i)
    result.slice(i, i + 1).copy_(x.slice(i % x.size(0), i % x.size(0) + 1));
  return result;
}

Conditions conditions(const SampleFlags& flags, const Settings& settings) {
  const int64_t N = flags.num_samples;
  Conditions result;
  if (flags.label >= 0 && !settings.class_cond)
    fail<UsageError>("--class: this model knows no classes");
  if (flags.label >= std::max<int64_t>(1, settings.num_classes)) {
    fail<UsageError>("--class is {}, a class from 0 to {} expected", flags.label,
                     settings.num_classes - 1);
  }
  if (settings.small_size == 0 && !flags.low_res.empty())
    fail<UsageError>("--low_res: this model does no super-resolution");
  if (settings.small_size > 0 && flags.low_res.empty()) {
    fail<UsageError>("--low_res is missing: this model enlarges images of {}x{}",
                     settings.small_size, settings.small_size);
  }
  if (settings.class_cond) result.y = cycling_classes(0, N, settings.num_classes);
  if (settings.small_size > 0) {
    const LowRes small = load_low_res(flags.low_res, settings, N);
    result.low_res = repeated(small.x, N);
    if (settings.class_cond && small.y.defined()) {
      for (int64_t y : small.y.values<int64_t>()) {
        if (y < 0 || y >= settings.num_classes)
          fail<Error>("{}: has class {}, the model knows {}", flags.low_res, y,
                      settings.num_classes);
      }
      result.y = repeated(small.y, N);
    }
  }
  if (flags.label >= 0)
    result.y =
        Tensor::from<int64_t>({N}, std::vector<int64_t>(static_cast<size_t>(N), flags.label));
  return result;
}

/// All samples, uint8.
Tensor make_samples(const SampleFlags& flags, const LoadedModel& model, Device device,
                    const SpacedDiffusion& diffusion, const Conditions& given, Strip& strip) {
  const int64_t N = flags.num_samples, size = model.settings.image_size, T = diffusion.T();
  const Tensor all = Tensor::empty({N, size, size, model.settings.image_channels}, DType::kUInt8);
  const int64_t batches = (N + flags.batch_size - 1) / flags.batch_size;
  Progress progress("sampling step", 0, batches * T, std::max<int64_t>(1, T / 10));
  int64_t done = 0;
  SampleRequest request;
  request.seed = flags.seed;
  request.use_ddim = flags.use_ddim;
  request.device = device;
  request.options.clip = flags.clip_denoised;
  request.options.eta = flags.eta;
  for (int64_t first = 0; first < N; first += flags.batch_size) {
    const int64_t end = std::min(N, first + flags.batch_size);
    request.first = first;
    request.count = end - first;
    if (given.y.defined()) request.y = given.y.slice(first, end);
    if (given.low_res.defined()) request.low_res = given.low_res.slice(first, end);
    request.options.on_step = [&](const SamplingStep& step) {
      strip.note(step, first);
      progress.update(++done, fmt::format("images {}-{} of {}", first + 1, end, N));
    };
    const Tensor x = sample_images(*model.unet, model.settings, diffusion, request);
    if (!std::ranges::all_of(x.values<float>(), [](float value) { return std::isfinite(value); }))
      fail<Error>("the samples are not finite numbers: the weights of {} are not",
                  flags.checkpoint);
    all.slice(first, end).copy_(to_uint8(x));
  }
  return all;
}

void write_single_images(const fs::path& folder, const Tensor& x, const Tensor& y) {
  fs::create_directories(folder);
  for (int64_t i = 0; i < x.size(0); ++i) {
    const std::string label =
        y.defined() ? fmt::format("{}_", y.values<int64_t>()[static_cast<size_t>(i)]) : "";
    write_png(folder / fmt::format("{}{:06}.png", label, i), to_image(x, i));
  }
}

}  // namespace

int sample_command(const std::vector<std::string>& arguments) {
  SampleFlags flags;
  CommandLine line = sample_command_line(flags);
  if (!line.parse(arguments)) return 0;
  check_flags(line, flags);
  if (flags.out.empty() && flags.png_dir.empty() && flags.npz.empty() && flags.progressive.empty())
    flags.out = "samples.png";
  const Device device = find_device(flags.device);
  use_precision(flags.precision, device);
  const LoadedModel model = load(line, flags, device);
  const SpacedDiffusion diffusion = make_diffusion(model.settings, flags.respacing);
  const Conditions given = conditions(flags, model.settings);

  note(fmt::format("{} images, {} of {} steps, {} weights of step {}, on {}\n", flags.num_samples,
                   flags.use_ddim ? "DDIM" : "DDPM", diffusion.T(), model.weights, model.step,
                   device.to_string()));
  Strip strip(flags.progressive.empty() ? 0 : std::min(flags.num_samples, int64_t{8}),
              diffusion.T());
  const Tensor x = make_samples(flags, model, device, diffusion, given, strip);

  const auto wrote = [](const std::string& path) { fmt::print("{}\n", path); };
  if (!flags.out.empty()) write_png(flags.out, image_grid(x)), wrote(flags.out);
  if (!flags.png_dir.empty()) write_single_images(flags.png_dir, x, given.y), wrote(flags.png_dir);
  if (!flags.npz.empty()) {
    std::vector<std::pair<std::string, Tensor>> arrays{{"arr_0", x}};
    if (given.y.defined()) arrays.emplace_back("arr_1", given.y);
    write_npz(flags.npz, arrays);
    wrote(flags.npz);
  }
  if (!flags.progressive.empty())
    write_png(flags.progressive, strip.picture()), wrote(flags.progressive);
  return 0;
}

}  // namespace mutilde::app
