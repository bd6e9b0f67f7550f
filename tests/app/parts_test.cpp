// The small parts of the command: suggestions, texts of the progress line, the plot.
#include <cmath>
#include <filesystem>
#include <fstream>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "app/plot.h"
#include "app/progress.h"
#include "app/run_folder.h"
#include "app/suggest.h"

namespace mutilde::app {
namespace {

TEST(EditDistance, CountsInsertionsDeletionsSubstitutionsAndSwaps) {
  EXPECT_EQ(edit_distance("", ""), 0);
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("abc", ""), 3);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance("cosien", "cosine"), 1);
}

TEST(Suggestion, NamesTheNearestThatCanHaveBeenMeantAndElseNothing) {
  const std::vector<std::string> names{"--lr", "--num_channels", "--num_res_blocks", "--num_heads"};
  EXPECT_EQ(suggestion("--num_chanels", names), "; did you mean '--num_channels'?");
  EXPECT_EQ(suggestion("--num_res", names), "; did you mean '--num_res_blocks'?");
  EXPECT_EQ(suggestion("--rl", names), "; did you mean '--lr'?");
  EXPECT_EQ(suggestion("--colour", names), "");
}

TEST(ProgressTexts, ReadWell) {
  EXPECT_EQ(duration_text(0.4), "0s");
  EXPECT_EQ(duration_text(59.7), "1m 00s");
  EXPECT_EQ(duration_text(7507), "2h 05m");
  EXPECT_EQ(duration_text(3 * 86400.0 + 7300), "3d 02h");
  EXPECT_EQ(grouped(7), "7");
  EXPECT_EQ(grouped(1240323), "1,240,323");
  EXPECT_EQ(grouped(-1000), "-1,000");
  EXPECT_EQ(bytes_text(999), "999 bytes");
  EXPECT_EQ(bytes_text(12.34e6), "12.3 MB");
}

TEST(Smoothing, KeepsWhatIsStraightOnALogarithmicAxisAndSkipsGaps) {
  const std::vector<double> falling{64, 32, 16, 8, 4, 2, 1};
  const std::vector<double> result = smoothed(falling, 0.3);
  for (size_t i = 0; i + 1 < falling.size(); ++i) EXPECT_NEAR(result[i], falling[i], 1e-12);
  EXPECT_NEAR(result.back(), std::sqrt(2 * 1), 1e-12);  // its window ends with the curve
  EXPECT_NEAR(smoothed({1, NAN, 4}, 1)[1], 2, 1e-12);
  EXPECT_TRUE(smoothed({}, 0.5).empty());
}

TEST(Plot, DrawsACurveWithinItsAxesAndSurvivesEveryInput) {
  const auto coloured = [](const Image& image) {
    int count = 0;
    for (size_t i = 0; i < image.pixels.size(); i += 3) {
      count += image.pixels[i] == 200 && image.pixels[i + 1] == 0 && image.pixels[i + 2] == 0;
    }
    return count;
  };
  const auto plot = [](std::vector<double> x, std::vector<double> y) {
    return draw_plot("title", "step", {{"", {200, 0, 0}, 3, std::move(x), std::move(y)}});
  };
  const Image image = plot({0, 500, 1000}, {1, 0.1, 0.05});
  EXPECT_EQ(image.channels, 3);
  EXPECT_GT(coloured(image), 500);
  EXPECT_EQ(coloured(plot({}, {})), 0);
  EXPECT_EQ(coloured(plot({1, 2}, {NAN, -1})), 0);
  plot({5}, {3});
  plot({1, 2}, {1e-300, 1e300});
}

TEST(PruneCheckpoints, KeepsTheOneJustSavedAndAllThatAreLater) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::temp_directory_path() / fmt::format("mutilde_prune_{}", getpid());
  fs::create_directories(folder);
  const auto steps_left = [&](int64_t keep, int64_t saved) {
    for (int64_t step : {1, 2, 3, 4, 5, 6})
      std::ofstream(numbered_file(folder, "checkpoint", step, "safetensors")) << "x";
    prune_checkpoints(folder, keep, saved);
    std::vector<int64_t> steps;
    for (const auto& [step, path] : checkpoints_in(folder)) steps.push_back(step);
    return steps;
  };
  using testing::ElementsAre;
  EXPECT_THAT(steps_left(3, 6), ElementsAre(4, 5, 6));
  EXPECT_THAT(steps_left(3, 2), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(steps_left(1, 2), ElementsAre(2, 3, 4, 5, 6));
  EXPECT_THAT(steps_left(0, 6), ElementsAre(1, 2, 3, 4, 5, 6));
  fs::remove_all(folder);
}

}  // namespace
}  // namespace mutilde::app
