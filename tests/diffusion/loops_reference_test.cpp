// Whole loops against the original's numbers: sampling with DDPM and
// DDIM, DDIM backwards, the bound.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "core/ops/ops.h"
#include "diffusion/losses.h"
#include "diffusion/respace.h"
#include "support/diffusion.h"
#include "support/reference.h"

namespace mutilde {
namespace {

using test::close;
using test::LoopModel;

/// The recorded noise, one tensor a step.
Noise recorded_noise(const Tensor& all) {
  return [all, step = int64_t{0}](const Tensor&) mutable { return test::entry(all, step++); };
}

void expect_timesteps_seen(const LoopModel& model, const Tensor& expected) {
  std::vector<double> seen;
  for (const auto& step : *model.seen) seen.insert(seen.end(), step.begin(), step.end());
  EXPECT_EQ(seen, expected.to_vector<double>());
}

/// One loop of a reference file, its keys beginning with `prefix`.
class Loop {
 public:
  Loop(const test::Reference& reference, const std::string& prefix, double rtol)
      : reference_(reference), prefix_(prefix), rtol_(rtol) {}

  /// Compares each step's result as the loop passes.
  std::function<void(const SamplingStep&)> check_steps() const {
    return [this](const SamplingStep& step) {
      SCOPED_TRACE(prefix_ + " step " + std::to_string(step.step));
      EXPECT_TRUE(close(step.sample.x, test::entry(images("samples"), step.step), rtol_));
      if (!reference_.has(prefix_ + "pred_xstart")) return;
      EXPECT_TRUE(close(step.sample.x_0_hat, test::entry(images("pred_xstart"), step.step), rtol_));
    };
  }
  Tensor images(const std::string& name) const { return reference_.read_images(prefix_ + name); }
  Tensor read(const std::string& name) const { return reference_.read(prefix_ + name); }

  void check_bits(const BitsPerDim& bits) const {
    EXPECT_TRUE(close(bits.total, read("total_bpd"), rtol_)) << prefix_;
    EXPECT_TRUE(close(bits.prior, read("prior_bpd"), rtol_)) << prefix_;
    EXPECT_TRUE(close(bits.vlb, read("vb"), rtol_)) << prefix_;
    EXPECT_TRUE(close(bits.x_0_mse, read("xstart_mse"), rtol_)) << prefix_;
    EXPECT_TRUE(close(bits.eps_mse, read("mse"), rtol_)) << prefix_;
  }

 private:
  const test::Reference& reference_;
  std::string prefix_;
  double rtol_;
};

class LoopReference : public ::testing::TestWithParam<bool> {};

INSTANTIATE_TEST_SUITE_P(Timesteps, LoopReference, ::testing::Values(false, true),
                         [](const auto& rescaled) {
                           return rescaled.param ? "Rescaled" : "Plain";
                         });

TEST_P(LoopReference, RespacedLoopsMatch) {
  const test::Reference reference(GetParam() ? "loops_rescaled" : "loops_plain");
  const int64_t T = std::stoll(reference.setting("T"));
  const std::vector<double> betas = named_beta_schedule(reference.setting("schedule"), T);
  const std::vector<int64_t> steps = space_timesteps(T, reference.setting("spec"));
  for (const auto& [name, variance] : test::variance_kinds()) {
    if (!reference.has(name + ".p.x_T")) continue;
    const SpacedDiffusion diffusion(betas, steps,
                                    {.variance = variance, .rescale_timesteps = GetParam()});
    const auto new_model = [&, learned = test::is_learned(variance)] {
      return LoopModel{std::stod(reference.setting("a")), std::stod(reference.setting("b")),
                       learned};
    };

    const Loop ddpm(reference, name + ".p.", 1e-4);
    LoopModel model = new_model();
    diffusion.p_sample_loop(model, ddpm.images("x_T"), recorded_noise(ddpm.images("noise")),
                            {.on_step = ddpm.check_steps()});
    expect_timesteps_seen(model, ddpm.read("t_seen"));

    const Loop ddim(reference, name + ".ddim.", 1e-4);
    model = new_model();
    diffusion.ddim_sample_loop(model, ddim.images("x_T"), recorded_noise(ddim.images("noise")),
                               {.on_step = ddim.check_steps()});
    expect_timesteps_seen(model, ddim.read("t_seen"));

    const Loop bpd(reference, name + ".bpd.", 1e-4);
    bpd.check_bits(bits_per_dim(diffusion, new_model(), bpd.images("x_0"),
                                recorded_noise(bpd.images("noise"))));
  }
}

/// A case of loops_more: which process, in words.
GaussianDiffusion process_of(const nlohmann::json& settings) {
  const auto of = [&](const auto& kinds, const std::string& key) {
    for (const auto& [name, kind] : kinds) {
      if (name == settings.at(key).get<std::string>()) return kind;
    }
    throw std::runtime_error("unknown " + key);
  };
  const auto T = settings.at("T").get<int64_t>();
  const auto betas = named_beta_schedule(settings.at("schedule").get<std::string>(), T);
  const DiffusionConfig config{.mean = of(test::mean_kinds(), "mean"),
                               .variance = of(test::variance_kinds(), "variance"),
                               .rescale_timesteps = settings.at("rescale_timesteps").get<bool>()};
  if (settings.at("spec").is_null()) return GaussianDiffusion(betas, config);
  return SpacedDiffusion(betas, space_timesteps(T, settings.at("spec").get<std::string>()), config);
}

class MoreLoops : public ::testing::TestWithParam<std::string> {};

INSTANTIATE_TEST_SUITE_P(Cases, MoreLoops,
                         ::testing::Values("spaced_eps", "spaced_eps_range", "spaced_x0",
                                           "plain_eps"),
                         [](const auto& name) { return name.param; });

TEST_P(MoreLoops, MatchTheReference) {
  const test::Reference reference("loops_more");
  const GaussianDiffusion diffusion =
      process_of(nlohmann::json::parse(reference.setting(GetParam())));
  const auto new_model = [&] {
    return LoopModel{std::stod(reference.setting("a")), std::stod(reference.setting("b")),
                     diffusion.learns_variance()};
  };

  const Loop ddpm(reference, GetParam() + ".p_noclip.", 1e-5);
  LoopModel model = new_model();
  diffusion.p_sample_loop(model, ddpm.images("x_T"), recorded_noise(ddpm.images("noise")),
                          {.clip = false, .on_step = ddpm.check_steps()});
  expect_timesteps_seen(model, ddpm.read("t_seen"));

  // 1 - alpha_bar_prev - sigma^2, in float32, loses digits at small t.
  const Loop ddim(reference, GetParam() + ".ddim_eta1.", 1e-3);
  model = new_model();
  diffusion.ddim_sample_loop(model, ddim.images("x_T"), recorded_noise(ddim.images("noise")),
                             {.eta = 1, .on_step = ddim.check_steps()});
  expect_timesteps_seen(model, ddim.read("t_seen"));

  const Loop reverse(reference, GetParam() + ".ddim_reverse.", 1e-5);
  model = new_model();
  diffusion.ddim_reverse_sample_loop(model, reverse.images("x_0"),
                                     {.on_step = reverse.check_steps()});
  expect_timesteps_seen(model, reverse.read("t_seen"));

  const Loop bpd(reference, GetParam() + ".bpd_noclip.", 1e-5);
  bpd.check_bits(bits_per_dim(diffusion, new_model(), bpd.images("x_0"),
                              recorded_noise(bpd.images("noise")), /*clip=*/false));
}

}  // namespace
}  // namespace mutilde
