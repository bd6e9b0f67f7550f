#include "diffusion/respace.h"

#include <cmath>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "support/diffusion.h"
#include "support/reference.h"

namespace mutilde {
namespace {

using test::close;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

TEST(Respacing, StepsMatchTheReference) {
  std::ifstream file(test::data_path("respacing.json"));
  const auto cases = nlohmann::json::parse(file);
  ASSERT_GT(cases.size(), 30u);
  for (const auto& one : cases) {
    const auto T = one.at("num_timesteps").get<int64_t>();
    const auto spec = one.at("spec").get<std::string>();
    if (one.value("error", false)) {
      EXPECT_THROW(space_timesteps(T, spec), Error) << spec;
    } else {
      EXPECT_EQ(space_timesteps(T, spec), one.at("steps").get<std::vector<int64_t>>()) << spec;
    }
  }
}

TEST(Respacing, BetasAndTimestepMapsMatchTheReference) {
  const test::Reference reference("respaced");
  int compared = 0;
  for (const std::string name : {"linear", "cosine"}) {
    for (const auto& [T, spec] : std::vector<std::pair<int64_t, std::string>>{
             {1000, "50"}, {1000, "ddim25"}, {300, "10,15,20"}, {4000, "100"}}) {
      const std::string key = name + "." + std::to_string(T) + "." + spec + ".";
      const SpacedDiffusion spaced(named_beta_schedule(name, T), space_timesteps(T, spec));
      EXPECT_TRUE(close(spaced.schedule().beta, reference.read(key + "betas"), 1e-10)) << key;
      EXPECT_TRUE(close(spaced.schedule().log_beta_tilde_clipped,
                        reference.read(key + "posterior_log_variance_clipped"), 1e-10))
          << key;
      EXPECT_EQ(spaced.timestep_map(), reference.read(key + "timestep_map").to_vector<int64_t>());
      compared += 3;
    }
  }
  EXPECT_EQ(compared, static_cast<int>(reference.names().size()));
}

TEST(Respacing, KeepsAlphaBarAtTheStepsKeptAsEq19Says) {
  for (const std::string name : {"linear", "cosine"}) {
    const std::vector<double> betas = named_beta_schedule(name, 200);
    const std::vector<int64_t> steps = {0, 3, 4, 50, 51, 120, 199};
    const SpacedDiffusion spaced(betas, steps);
    for (size_t i = 0; i < steps.size(); ++i) {
      const double alpha_bar = test::alpha_bar_at(betas, steps[i]);
      const double alpha_bar_prev = i == 0 ? 1 : test::alpha_bar_at(betas, steps[i - 1]);
      EXPECT_NEAR(spaced.schedule().alpha_bar.data<double>()[i], alpha_bar, 1e-14);
      EXPECT_NEAR(spaced.schedule().beta.data<double>()[i], 1 - alpha_bar / alpha_bar_prev, 1e-13);
    }
  }
}

TEST(Respacing, KeepingAllStepsChangesNothing) {
  const std::vector<double> betas = cosine_beta_schedule(100);
  const SpacedDiffusion spaced(betas, space_timesteps(100, "100"));
  EXPECT_TRUE(close(spaced.schedule().beta, Schedule(betas).beta, 1e-12));
}

TEST(Respacing, ShowsTheModelTheOriginalTimesteps) {
  const std::vector<double> betas = cosine_beta_schedule(4000);
  const Tensor t = test::timesteps({0, 1, 2});
  const SpacedDiffusion plain(betas, {10, 20, 3999});
  EXPECT_THAT(plain.model_timesteps(t).to_vector<int64_t>(), ElementsAre(10, 20, 3999));
  const SpacedDiffusion rescaled(betas, {10, 20, 3999}, {.rescale_timesteps = true});
  EXPECT_THAT(rescaled.model_timesteps(t).to_vector<double>(), ElementsAre(2.5, 5, 999.75));
}

TEST(Respacing, WorksWithOneStep) {
  EXPECT_THAT(space_timesteps(1000, "1"), ElementsAre(0));
  EXPECT_THAT(space_timesteps(1, "1"), ElementsAre(0));
  const SpacedDiffusion one(linear_beta_schedule(1000), {999});
  EXPECT_EQ(one.T(), 1);
}

TEST(Respacing, RoundsHalvesToTheEvenStep) {
  // A stride of 2.5: 0, 2.5, 5, 7.5, 10.
  EXPECT_THAT(space_timesteps(11, "5"), ElementsAre(0, 2, 5, 8, 10));
}

TEST(Respacing, TakesSpacesAroundNumbers) {
  EXPECT_EQ(space_timesteps(300, "10, 15, 20"), space_timesteps(300, "10,15,20"));
}

TEST(Respacing, RefusesWhatIsNoSpecification) {
  for (const std::string spec : {"", "abc", "10,,20", "10,", "ddim", "ddimx", "10.5", "1e2",
                                 "ddim10,20", "99999999999999999999", "--5", "0x10"}) {
    EXPECT_THAT([&] { space_timesteps(1000, spec); },
                ThrowsMessage<Error>(HasSubstr("no number of steps")))
        << spec;
  }
}

TEST(Respacing, RefusesCountsThatDoNotFit) {
  for (const std::string spec : {"0", "-1", "10,0,20", "1001", "500,501"}) {
    EXPECT_THROW(space_timesteps(1000, spec), Error) << spec;
  }
  for (const std::string spec : {"ddim0", "ddim-5", "ddim1", "ddim777", "ddim1001"}) {
    EXPECT_THAT([&] { space_timesteps(1000, spec); }, ThrowsMessage<Error>(HasSubstr("stride")))
        << spec;
  }
  EXPECT_THROW(space_timesteps(0, "1"), Error);
  EXPECT_THROW(space_timesteps(2, "1,1,1"), Error);
  EXPECT_THROW(space_timesteps(10, std::vector<int64_t>{}), Error);
}

TEST(Respacing, RefusesStepsThatAreNotOfTheProcess) {
  const std::vector<double> betas = cosine_beta_schedule(10);
  EXPECT_THROW(SpacedDiffusion(betas, {}), Error);
  EXPECT_THROW(SpacedDiffusion(betas, {0, 10}), Error);
  EXPECT_THROW(SpacedDiffusion(betas, {-1, 5}), Error);
  EXPECT_THROW(SpacedDiffusion(betas, {5, 5}), Error);
  EXPECT_THROW(SpacedDiffusion(betas, {5, 3}), Error);
}

}  // namespace
}  // namespace mutilde
