// The commands. Each takes what follows its name on the command line and returns the exit code;
// Errors go up to main().
#pragma once

#include <string>
#include <vector>

namespace mutilde::app {

constexpr int kBadInput = 2;
constexpr int kInterrupted = 130;

int train_command(const std::vector<std::string>& arguments);
int sample_command(const std::vector<std::string>& arguments);
int nll_command(const std::vector<std::string>& arguments);
int info_command(const std::vector<std::string>& arguments);
int bench_command(const std::vector<std::string>& arguments);

}  // namespace mutilde::app
