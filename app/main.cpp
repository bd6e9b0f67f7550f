// mutilde: train diffusion models, sample from them, look into their checkpoints, measure.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <new>
#include <string>
#include <system_error>
#include <vector>

#include <fmt/format.h>
#include <unistd.h>

#include "app/commands.h"
#include "app/progress.h"
#include "app/suggest.h"
#include "core/error.h"

namespace mutilde::app {
namespace {

struct Command {
  const char* name;
  int (*run)(const std::vector<std::string>& arguments);
  const char* summary;
};

constexpr std::array<Command, 5> kCommands = {
    {{"train", train_command, "Train a diffusion model on a folder of images or a known data set"},
     {"sample", sample_command, "Make images with a trained model"},
     {"nll", nll_command, "Bound the negative log-likelihood of images, in bits per dimension"},
     {"info", info_command, "Show what is in a checkpoint"},
     {"bench", bench_command, "Measure a step, and where its time goes"}}};

void print_help(std::FILE* out) {
  fmt::print(out,
             "mutilde {}: diffusion models, from real images to samples\n\n"
             "Usage: mutilde COMMAND [flags]\n\n"
             "Commands:\n",
             MUTILDE_VERSION);
  for (const Command& command : kCommands)
    fmt::print(out, "  {:<10}{}\n", command.name, command.summary);
  fmt::print(
      out,
      "\n'mutilde COMMAND --help' explains a command. A first run:\n"
      "  mutilde train --data fashion-mnist --preset small --steps 1000 --lr 1e-3 --out run\n"
      "  mutilde sample run --out samples.png\n");
}

int run(std::vector<std::string> arguments) {
  if (arguments.empty()) {
    print_help(stderr);
    return kBadInput;
  }
  const std::string name = arguments.front();
  arguments.erase(arguments.begin());
  if (name == "--version") {
    fmt::print("mutilde {}\n", MUTILDE_VERSION);
    return 0;
  }
  std::vector<std::string> names{"--help", "--version"};
  for (const Command& command : kCommands) {
    if (name == command.name) return command.run(arguments);
    names.emplace_back(command.name);
  }
  if (name == "--help" || name == "-h" || name == "help") {
    for (const Command& command : kCommands) {
      if (!arguments.empty() && arguments.front() == command.name) return command.run({"--help"});
    }
    print_help(stdout);
    return 0;
  }
  const std::string guess = suggestion(name, names);
  fail<Error>("unknown command '{}'{}", name, guess.empty() ? "; see 'mutilde --help'" : guess);
}

int report(std::string message) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  note(fmt::format("mutilde: error: {}\n", message));
  return kBadInput;
}

/// GCC's OpenMP lets a thread that waits spin for milliseconds, and takes the core from the one that it waits for
/// where other programs run too: a step took 2 to 30 times as long. 10,000 turns, some tens of microseconds, cost
/// nothing where the cores are free (docs/performance.md). It reads the environment before main() begins, so the
/// program is started anew with that; where this fails it goes on as it is.
void spin_shortly([[maybe_unused]] char** argv) {
#if defined(__linux__) && !defined(__clang__)  // clang's OpenMP reads other variables
  if (std::getenv("GOMP_SPINCOUNT") != nullptr || std::getenv("OMP_WAIT_POLICY") != nullptr) return;
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error || ::setenv("GOMP_SPINCOUNT", "10000", 1) != 0) return;
  ::execv(self.c_str(), argv);
#endif
}

}  // namespace
}  // namespace mutilde::app

int main(int argc, char** argv) {
  mutilde::app::spin_shortly(argv);
  constexpr const char* kSmallerBatch =
      "; a smaller --batch_size needs less (train: or --microbatch, or --use_checkpoint)";
  try {
    return mutilde::app::run({argv + 1, argv + argc});
  } catch (const mutilde::OutOfMemoryError& error) {
    return mutilde::app::report(std::string(error.what()) + kSmallerBatch);
  } catch (const std::bad_alloc&) {
    return mutilde::app::report(std::string("out of memory") + kSmallerBatch);
  } catch (const std::exception& error) {
    return mutilde::app::report(error.what());
  }
}
