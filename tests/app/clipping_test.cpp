// scripts/clipping.sh on tiny networks: what its tables say is what the equations demand.
#include <algorithm>
#include <cmath>
#include <sstream>

#include <gtest/gtest.h>

#include "diffusion/schedule.h"
#include "running.h"

namespace mutilde::test {
namespace {

/// The cells of the table that has this column.
std::vector<std::vector<std::string>> rows_of(const std::string& markdown,
                                              const std::string& column) {
  std::vector<std::vector<std::string>> rows;
  std::istringstream lines(markdown);
  bool wanted = false;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("| schedule |")) wanted = line.find("| " + column + " |") != line.npos;
    if (!wanted || (!line.starts_with("| linear |") && !line.starts_with("| cosine |"))) continue;
    rows.emplace_back();
    for (size_t from = 2, to; (to = line.find(" |", from)) != line.npos; from = to + 3)
      rows.back().push_back(line.substr(from, to - from));
  }
  return rows;
}

TEST_F(CommandTest, TheExperimentOnClippingRuns) {
  // One thread: with so little to do several would wait for each other.
  const std::string command =
      fmt::format("OMP_NUM_THREADS=1 '{}/scripts/clipping.sh' --test '{}' '{}' >'{}/out' 2>&1",
                  MUTILDE_SOURCE_DIR, MUTILDE_BUILD_DIR, work().string(), folder_.string());
  ASSERT_EQ(std::system(command.c_str()), 0) << read_file(folder_ / "out");

  const std::string tables = read_file(work() / "fashion/tables.md");
  int untrained = 0, samples = 0;
  for (const std::vector<std::string>& row : rows_of(tables, "largest eps_theta")) {
    if (row[1] != "24") continue;
    // A fresh network predicts no noise: the means part by beta / (sqrt(alpha) (1 - alpha_bar)) x_t.
    const auto betas = named_beta_schedule(row[0], 24);
    double alpha_bar = 1;
    for (double beta : betas) alpha_bar *= 1 - beta;
    EXPECT_EQ(row[2], "0");
    EXPECT_NEAR(std::stod(row[4]), betas.back() / (std::sqrt(1 - betas.back()) * (1 - alpha_bar)),
                1e-3 * std::stod(row[4]));  // four digits are printed
    ++untrained;
  }
  EXPECT_EQ(untrained, 2);
  std::string away_with_last_step;
  for (const std::vector<std::string>& row : rows_of(tables, "sampler")) {
    // What is clipped last stays in range, and clipping the last step alone changes the numbers of
    // the picture but no pixel of it: that range is the pixels' too.
    if (row[3] == "every step" || row[3] == "last step") {
      EXPECT_EQ(row[6], "0.0%");
    }
    if (row[3] == "every step") {
      EXPECT_EQ(row[7], "0.0");
    }
    if (row[3] == "no step") {
      EXPECT_EQ(row[7], away_with_last_step);
    }
    away_with_last_step = row[7];
    ++samples;
  }
  EXPECT_EQ(samples, 2 * 2 * 2 * 4);  // schedules, lengths, samplers, ways to clip
  // Of both lengths, the first step and the last: both walks begin at the same state, and none adds
  // noise at the end.
  std::vector<std::string> walks;
  for (const std::vector<std::string>& row : rows_of(tables, "noise added")) {
    if (row[2] == "23") {
      EXPECT_EQ(row[4], row[5]);
      EXPECT_EQ(row[6], row[7]);
      walks.push_back(row[0] + " " + row[1]);
    }
    if (row[2] == "0") {
      EXPECT_EQ(row[3], "0");
    }
  }
  EXPECT_EQ(walks, (std::vector<std::string>{"linear 24", "linear 4", "cosine 24", "cosine 4"}));
  for (const char* name :
       {"samples_linear_24.png", "samples_cosine_4.png", "outside.png", "means.png"})
    EXPECT_TRUE(fs::exists(work() / "fashion" / name)) << name;
  // 24 + 4 steps thrice and two last ones more, by two samplers on two schedules; and the heading.
  const std::string csv = read_file(work() / "fashion/by_t.csv");
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 1 + 4 * (3 * 28 + 2));
}

}  // namespace
}  // namespace mutilde::test
