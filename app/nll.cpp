// mutilde nll: how many bits a dimension a model needs for images at most (eq. 4).
#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "app/commands.h"
#include "app/device.h"
#include "app/interrupt.h"
#include "app/loading.h"
#include "app/plot.h"
#include "app/progress.h"
#include "app/sampling.h"
#include "data/image_io.h"
#include "data/npz.h"

namespace mutilde::app {

namespace {

struct NllFlags : ModelFlags {
  std::string data, npz, plot;
  int64_t num_samples = 1000;
};

CommandLine nll_command_line(NllFlags& flags) {
  CommandLine line(
      "nll",
      "Bounds the negative log-likelihood of images under a model, in bits per dimension. The "
      "network is called at every step, for every image.",
      "mutilde nll CHECKPOINT [flags]",
      "  mutilde nll run --num_samples 100\n"
      "  mutilde nll run --data /usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz\n"
      "  mutilde nll run --timestep_respacing 100 --npz terms.npz --plot terms.png\n");
  add_checkpoint(line, flags);
  line.group("What to measure");
  line.add("--data,--data_dir", flags.data,
           "images, as 'mutilde train' takes them; empty: those that the model was trained on",
           "DATA");
  line.add("--num_samples", flags.num_samples, "how many of them, from the first on; 0: all");
  line.add("--seed", flags.seed, "the same seed draws the same noise");
  line.group("How");
  add_model_flags(line, flags);
  line.group("Output");
  line.add("--npz", flags.npz,
           "numpy arrays, means over the images at each step: vb, mse and xstart_mse [T], and t, "
           "which falls",
           "FILE");
  line.add("--plot", flags.plot, "vb over t, as a curve", "PNG");
  add_foreign_model(line, flags);
  return line;
}

struct Stopped {};  // by Ctrl-C, within a batch

/// Sums over images. In vectors over the steps t falls, as in BitsPerDim.
struct Sums {
  int64_t images = 0;
  double total = 0, prior = 0;
  std::vector<double> vb, mse, x_0_mse;

  void add(const BitsPerDim& bits) {
    images += bits.total.size(0);
    for (double x : bits.total.to_vector<double>()) total += x;
    for (double x : bits.prior.to_vector<double>()) prior += x;
    add_rows(vb, bits.vlb);
    add_rows(mse, bits.eps_mse);
    add_rows(x_0_mse, bits.x_0_mse);
  }

 private:
  static void add_rows(std::vector<double>& sums, const Tensor& rows) {
    const std::vector<double> values = rows.to_vector<double>();
    sums.resize(static_cast<size_t>(rows.size(1)));
    for (size_t i = 0; i < values.size(); ++i) sums[i % sums.size()] += values[i];
  }
};

double sum_of(const std::vector<double>& x) { return std::accumulate(x.begin(), x.end(), 0.0); }

/// The `count` images from `first` on, and what the model is given with them.
struct Images {
  Tensor x_0, y, low_res;
};

Images images_of(const Dataset& dataset, const Settings& settings, int64_t first, int64_t count,
                 Device device) {
  const int64_t size = settings.image_size;
  const Tensor pixels = Tensor::empty({count, size, size, dataset.channels()}, DType::kUInt8);
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < count; ++i) {
    dataset.get(first + i, pixels.slice(i, i + 1).values<uint8_t>());
    labels.push_back(dataset.label(first + i));
  }
  Images images{.x_0 = from_uint8(pixels).to(device), .y = {}, .low_res = {}};
  if (settings.class_cond) images.y = Tensor::from<int64_t>({count}, labels).to(device);
  if (settings.small_size > 0) images.low_res = downsampled(settings, images.x_0);
  return images;
}

/// Over the first N images, or the batches of them that were done before an interrupt.
Sums measure(const NllFlags& flags, const LoadedModel& model, const SpacedDiffusion& diffusion,
             const Dataset& dataset, int64_t N, Device device) {
  Sums sums;
  const int64_t T = diffusion.T(), steps = (N + flags.batch_size - 1) / flags.batch_size * T;
  Progress progress("step", 0, steps, steps / 20);
  int64_t done = 0;
  catch_interrupts();
  try {
    for (int64_t first = 0; first < N; first += flags.batch_size) {
      const int64_t count = std::min(flags.batch_size, N - first);
      const Images images = images_of(dataset, model.settings, first, count, device);
      const Model network = [&](const Tensor& x_t, const Tensor& t) {
        if (interrupted()) throw Stopped();
        const Tensor out = model.unet->forward(x_t, t, images.y, images.low_res);
        std::string status = fmt::format("images {}-{} of {}", first + 1, first + count, N);
        if (first > 0)
          status += fmt::format("  {:.4f} bits/dim", sums.total / static_cast<double>(first));
        progress.update(++done, status);
        return out;
      };
      sums.add(bits_per_dim(diffusion, network, images.x_0,
                            noise_by_image(flags.seed, first, count), flags.clip_denoised));
      if (!std::isfinite(sums.total))
        fail<Error>("the bits per dimension are not finite numbers: the weights of {} are not",
                    flags.checkpoint);
    }
  } catch (const Stopped&) {  // what was done before this batch counts
  }
  return sums;
}

void print(const Sums& sums) {
  const auto N = static_cast<double>(sums.images), T = static_cast<double>(sums.vb.size());
  const double L_0 = sums.vb.back() / N, all = sum_of(sums.vb) / N;
  fmt::print("bits per dimension    {:.4f}, mean of {}\n", sums.total / N,
             sums.images == 1 ? "1 image" : grouped(sums.images) + " images");
  fmt::print("  L_T, the prior      {:.4g}\n", sums.prior / N);
  fmt::print("  L_1 to L_T-1        {:.4g}\n", all - L_0);
  fmt::print("  L_0                 {:.4g}\n", L_0);
  fmt::print("mean over {} steps\n", sums.vb.size());
  fmt::print("  vb                  {:.4g}\n", all / T);
  fmt::print("  mse                 {:.4g}\n", sum_of(sums.mse) / N / T);
  fmt::print("  xstart_mse          {:.4g}\n", sum_of(sums.x_0_mse) / N / T);
}

void write(const NllFlags& flags, const Sums& sums, const std::vector<int64_t>& timesteps) {
  const std::vector<int64_t> t(timesteps.rbegin(), timesteps.rend());
  const auto T = static_cast<int64_t>(t.size());
  const auto mean = [&](std::vector<double> x) {
    for (double& value : x) value /= static_cast<double>(sums.images);
    return x;
  };
  if (!flags.npz.empty()) {
    write_npz(flags.npz, {{"vb", Tensor::from<double>({T}, mean(sums.vb))},
                          {"mse", Tensor::from<double>({T}, mean(sums.mse))},
                          {"xstart_mse", Tensor::from<double>({T}, mean(sums.x_0_mse))},
                          {"t", Tensor::from<int64_t>({T}, t)}});
    fmt::print("{}\n", flags.npz);
  }
  if (!flags.plot.empty()) {
    const Curve vb{"", {28, 78, 178}, 2.5, {t.begin(), t.end()}, mean(sums.vb)};
    write_png(flags.plot, draw_plot("vb, bits per dimension", "t", {vb}));
    fmt::print("{}\n", flags.plot);
  }
}

}  // namespace

int nll_command(const std::vector<std::string>& arguments) {
  NllFlags flags;
  CommandLine line = nll_command_line(flags);
  if (!line.parse(arguments)) return 0;
  check_model_flags(line, flags);
  if (flags.num_samples < 0)
    fail<UsageError>("--num_samples is {}, at least 0 expected", flags.num_samples);
  for (const std::string& path : {flags.npz, flags.plot}) check_output_file(path);
  const Device device = find_device(flags.device);
  use_precision(flags.precision, device);
  LoadedModel model = load(line, flags, device);
  const SpacedDiffusion diffusion = make_diffusion(model.settings, flags.respacing);
  if (!flags.data.empty()) model.settings.data = flags.data;
  if (model.settings.data.empty())
    fail<UsageError>("--data is missing: {} names no data set", flags.checkpoint);
  DatasetOptions data_options;
  data_options.memory_limit = 0;  // each image is read once
  const auto dataset = open_data(model.settings, data_options);
  const int64_t N =
      flags.num_samples == 0 ? dataset->size() : std::min(flags.num_samples, dataset->size());

  note(fmt::format("{} of {} images of {}, {} steps, {} weights of step {}, on {}\n", grouped(N),
                   grouped(dataset->size()), model.settings.data, diffusion.T(), model.weights,
                   model.step, device.to_string()));
  const Sums sums = measure(flags, model, diffusion, *dataset, N, device);
  if (sums.images < N)
    note(fmt::format("stopped after {} of {} images\n", grouped(sums.images), grouped(N)));
  if (sums.images > 0) {
    const Saving saving;
    print(sums);
    write(flags, sums, diffusion.timestep_map());
  }
  return sums.images < N ? kInterrupted : 0;
}

}  // namespace mutilde::app
