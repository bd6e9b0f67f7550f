// What clipping the predicted image does to a trained network: the same noise sampled with and
// without it. docs/clipping.md shows what came out.
//
//   clipping [--steps 1000,50] [--num_samples N] [--seed N] --out DIR RUN...
//
// The curves are those of the first number of steps.
// RUN: what `mutilde train` left, a folder or a checkpoint; a network that predicts the noise.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "app/plot.h"
#include "app/run_folder.h"
#include "core/atomic_file.h"
#include "core/autograd.h"
#include "core/ops/ops.h"
#include "data/image_io.h"
#include "diffusion/checkpoint.h"

namespace mutilde {
namespace {

struct Options {
  std::vector<std::string> steps{"1000", "50"}, runs;
  int64_t num_samples = 4;
  uint64_t seed = 0;
  std::filesystem::path out;
};

double root_mean_square(const Tensor& x) { return std::sqrt(mean(square(x)).item()); }
double mean_size(const Tensor& x) { return mean(abs(x)).item(); }
double largest(const Tensor& x) { return max(abs(x)).item(); }
double share_outside(const Tensor& x) {
  return mean(cast(less(Tensor::full({1}, 1), abs(x)), DType::kFloat32)).item();
}

/// What the network said at one step, before anything was clipped.
struct AtStep {
  int64_t t;       // counted in the process with all steps
  double size;     // of x_t, root mean square; 1 is expected
  double outside;  // the share of x_0_hat outside [-1, 1]
  double apart;    // eq. 13's mean from eq. 11's with the clipped image: root mean square
  double most;     // the same of the pixel where it is largest
  double noise;    // the standard deviation of what DDPM adds
};

AtStep look(const GaussianDiffusion& diffusion, const Tensor& x_t, int64_t t,
            const Tensor& eps_theta) {
  const Schedule& schedule = diffusion.schedule();
  const Tensor steps = full_timesteps(t, x_t);
  const Tensor apart = mean_from_eps(schedule, x_t, steps, eps_theta) -
                       mean_through_x0(schedule, x_t, steps, eps_theta, /*clip=*/true);
  const double variance =
      mean(diffusion.p_mean_variance({eps_theta, {}}, x_t, steps).variance).item();
  return {diffusion.timestep_map()[static_cast<size_t>(t)],
          root_mean_square(x_t),
          share_outside(predict_x0_from_eps(schedule, x_t, steps, eps_theta)),
          root_mean_square(apart),
          largest(apart),
          t == 0 ? 0 : std::sqrt(variance)};
}

/// One network under one process, by one sampler.
struct Sampler {
  const UNet& unet;
  const GaussianDiffusion& diffusion;
  bool ddim;
  uint64_t seed;
};

struct Walk {
  Tensor x_1, x_0;  // before the last step, and after it
  std::vector<AtStep> steps;
};

/// From x_t at t = `from` to x_0, clipping at the steps that `clips` names. Noise depends on the seed
/// and on how many steps were taken alone.
Walk walk(const Sampler& sampler, Tensor x, int64_t from,
          const std::function<bool(int64_t t)>& clips) {
  const GaussianDiffusion& diffusion = sampler.diffusion;
  Generator random(sampler.seed, 1);
  Walk result;
  for (int64_t t = from; t >= 0; --t) {
    Tensor eps_theta;  // what the sampler was told
    const Model model = [&](const Tensor& x_t, const Tensor& seen_t) {
      return eps_theta = sampler.unet.forward(x_t, seen_t);
    };
    const SamplingOptions options{.clip = clips(t)};
    const Tensor steps = full_timesteps(t, x), eps = random.normal(x.shape());
    if (t == 0) result.x_1 = x;
    const Tensor x_prev = sampler.ddim ? diffusion.ddim_sample(model, x, steps, eps, options).x
                                       : diffusion.p_sample(model, x, steps, eps, options).x;
    result.steps.push_back(look(diffusion, x, t, eps_theta));
    x = x_prev;
  }
  result.x_0 = x;
  return result;
}

// The ways to clip, in the order of the pictures' rows.
constexpr const char* kClipped[] = {"every step", "first step", "last step", "no step"};

std::vector<Walk> walks(const Sampler& sampler, const Tensor& x_T) {
  const int64_t last = sampler.diffusion.T() - 1;
  const auto always = [](int64_t) { return true; };
  std::vector<Walk> result;
  result.push_back(walk(sampler, x_T, last, always));
  result.push_back(walk(sampler, x_T, last, [last](int64_t t) { return t == last; }));
  Walk none = walk(sampler, x_T, last, [](int64_t) { return false; });
  result.push_back(walk(sampler, none.x_1, 0, always));  // the same walk, up to its last step
  result.push_back(std::move(none));
  return result;
}

/// The tables and pictures of all runs.
class Report {
 public:
  explicit Report(const Options& options) : options_(options) {}

  void add(const LoadedModel& model) {
    const Settings& settings = model.settings;
    const std::string& schedule = settings.noise_schedule;
    const int64_t size = settings.image_size;
    const Tensor x_T = Generator(options_.seed)
                           .normal({options_.num_samples, size, size, settings.image_channels});
    for (const std::string& steps : options_.steps) {
      const SpacedDiffusion diffusion = make_diffusion(settings, steps);
      if (diffusion.learns_variance() || diffusion.config().mean != ModelMean::kEpsilon)
        fail<Error>("clipping: a network that predicts the noise, and no variance, is expected");
      add_untrained(settings, diffusion, x_T);
      std::vector<app::Row> rows;
      for (const bool ddim : {false, true}) {
        const char* name = ddim ? "DDIM" : "DDPM";
        const std::vector<Walk> all = walks({*model.unet, diffusion, ddim, options_.seed}, x_T);
        for (size_t i = 0; i < all.size(); ++i) {
          rows.push_back({fmt::format("{}, {}", name, kClipped[i]), all[i].x_0});
          add_walk({schedule, steps, name, kClipped[i]}, all[i], all[0].x_0);
        }
        if (ddim) continue;
        add_by_t(schedule + " | " + steps, all.front(), all.back());
        if (steps == options_.steps.front()) add_curves(schedule, all);
      }
      save(fmt::format("samples_{}_{}.png", schedule, steps), app::labelled_rows({}, rows, 2));
    }
  }

  void write() const {
    save("outside.png", app::draw_plot("% of x_0_hat outside", "t", outside_));
    save("means.png", app::draw_plot("between the means", "t", apart_));
    save("tables.md", fmt::format("{}\n{}\n{}", untrained_, samples_, by_t_));
    save("by_t.csv", csv_);
  }

 private:
  /// The first step of a network with fresh weights.
  void add_untrained(const Settings& settings, const GaussianDiffusion& diffusion,
                     const Tensor& x_T) {
    Generator random(options_.seed);
    const std::unique_ptr<UNet> unet = make_unet(settings, random);
    const Schedule& schedule = diffusion.schedule();
    const Tensor steps = full_timesteps(schedule.T - 1, x_T);
    const Tensor eps_theta = unet->forward(x_T, diffusion.model_timesteps(steps));
    const Tensor direct = mean_from_eps(schedule, x_T, steps, eps_theta);
    const Tensor clipped = mean_through_x0(schedule, x_T, steps, eps_theta, /*clip=*/true);
    const auto last = [&](const Tensor& table) { return table.values<double>().back(); };
    untrained_ +=
        fmt::format("| {} | {} | {:.3g} | {:.4g} | {:.4g} | {:.3g} | {:.3g} | {:.3g} | {:.3g} |\n",
                    settings.noise_schedule, schedule.T, largest(eps_theta),
                    last(schedule.sqrt_recip_alpha_bar),
                    last(schedule.beta) /
                        (std::sqrt(last(schedule.alpha)) * last(schedule.one_minus_alpha_bar)),
                    mean_size(direct - clipped), largest(direct - clipped),
                    root_mean_square(direct), root_mean_square(clipped));
  }

  /// `names`: schedule, steps, sampler and what was clipped. `every`: the samples of every step clipped.
  void add_walk(const std::vector<std::string>& names, const Walk& walk, const Tensor& every) {
    fmt::print("{}\n", fmt::join(names, ", "));
    std::fflush(stdout);  // it takes minutes until the next
    double size = 0;
    for (const AtStep& s : walk.steps) {
      size = std::max(size, s.size);
      const std::string numbers = fmt::format("{},{:.6g},{:.6g},{:.6g},{:.6g},{:.6g}", s.t, s.size,
                                              s.outside, s.apart, s.most, s.noise);
      csv_ += fmt::format("{},{}\n", fmt::join(names, ","), numbers);
    }
    const Tensor levels = cast(to_uint8(walk.x_0), DType::kFloat64);
    const double away = mean_size(levels - cast(to_uint8(every), DType::kFloat64));
    samples_ +=
        fmt::format("| {} | {:.3g} | {:.3g} | {:.1f}% | {:.1f} |\n", fmt::join(names, " | "), size,
                    root_mean_square(walk.x_0), 100 * share_outside(walk.x_0), away);
  }

  /// The first two steps, the last two and some between.
  void add_by_t(const std::string& names, const Walk& every, const Walk& none) {
    const size_t T = every.steps.size();
    for (size_t i = 0; i < T; ++i) {
      if (i > 1 && i + 2 < T && i % (T / 5 + 1) != 0) continue;
      const AtStep &e = every.steps[i], &n = none.steps[i];
      by_t_ += fmt::format("| {} | {} | {:.2g} | {:.1f}% | {:.1f}% | {:.2g} | {:.2g} | {:.3g} |\n",
                           names, e.t, e.noise, 100 * e.outside, 100 * n.outside, e.apart, n.apart,
                           n.size);
    }
  }

  void add_curves(const std::string& schedule, const std::vector<Walk>& all) {
    const uint8_t red = schedule == "linear" ? 0 : 220;
    const auto add = [&](const std::string& name, const Walk& walk, uint8_t green, uint8_t blue) {
      app::Curve outside{schedule + name, {red, green, blue}, 2, {}, {}}, apart = outside;
      for (const AtStep& s : walk.steps) {
        outside.x.push_back(static_cast<double>(s.t));
        outside.y.push_back(100 * s.outside);
        apart.x.push_back(static_cast<double>(s.t));
        apart.y.push_back(s.apart);
      }
      outside_.push_back(outside);
      apart_.push_back(apart);
    };
    add(" none", all.back(), 170, 200);
    add(" every", all.front(), 80, 120);
  }

  void save(const std::string& name, const Image& image) const {
    write_png(options_.out / name, image);
    fmt::print("wrote {}\n", name);
  }
  void save(const std::string& name, const std::string& text) const {
    atomic_write(options_.out / name, [&](FileWriter& file) { file.write(text); });
    fmt::print("wrote {}\n", name);
  }

  const Options& options_;
  std::vector<app::Curve> outside_, apart_;
  std::string untrained_ =
      "| schedule | steps | largest eps_theta | image, times x_t | means apart, times x_t | apart "
      "| "
      "most | size of the mean | clipped |\n|---|---|---|---|---|---|---|---|---|\n";
  std::string samples_ =
      "| schedule | steps | sampler | clipped | largest state | size at the end | outside | "
      "from every step clipped |\n|---|---|---|---|---|---|---|---|\n";
  std::string by_t_ =
      "| schedule | steps | t | noise added | outside: every | none | means apart: every | none | "
      "size of x_t: none |\n|---|---|---|---|---|---|---|---|---|\n";
  std::string csv_ = "schedule,steps,sampler,clipped,t,size,outside,apart,most,noise\n";
};

Options parse(int argc, char** argv) {
  Options options;
  CLI::App app("Samples from the same noise with and without clipping.");
  app.add_option("--steps", options.steps, "lengths of the process; the curves show the first")
      ->delimiter(',');
  app.add_option("--num_samples", options.num_samples, "pictures of each kind");
  app.add_option("--seed", options.seed, "of the noise");
  app.add_option("--out", options.out, "folder for tables and pictures")->required();
  app.add_option("RUN", options.runs, "what `mutilde train` left")->required();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error));
  }
  return options;
}

}  // namespace
}  // namespace mutilde

int main(int argc, char** argv) {
  using namespace mutilde;
  const Options options = parse(argc, argv);
  try {
    const NoGrad no_grad;
    std::filesystem::create_directories(options.out);
    Report report(options);
    for (const std::string& run : options.runs) {
      report.add(load_model(app::find_checkpoint(run)));
      report.write();  // each time, as the next one takes many minutes
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "clipping: {}\n", error.what());
    return 2;
  }
}
