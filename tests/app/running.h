// Runs the mutilde command in a folder of its own.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "data/image_io.h"

namespace mutilde::test {

namespace fs = std::filesystem;

struct Result {
  int exit_code = 0;
  std::string out, err;
};

inline std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class CommandTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("mutilde_app_test_{}", getpid());
    fs::create_directories(folder_ / "work");
  }
  void TearDown() override { fs::remove_all(folder_); }

  /// The folder that the command runs in.
  fs::path work() const { return folder_ / "work"; }

  /// `arguments` as in a shell, free of characters that need quoting.
  Result run(const std::string& arguments) const {
    const std::string command = fmt::format("cd '{0}/work' && '{1}' {2} >'{0}/out' 2>'{0}/err'",
                                            folder_.string(), MUTILDE_BINARY, arguments);
    const int status = std::system(command.c_str());
    Result result{WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(folder_ / "out"),
                  read_file(folder_ / "err")};
    return result;
  }

  /// The same, and it must succeed.
  Result succeed(const std::string& arguments) const {
    Result result = run(arguments);
    EXPECT_EQ(result.exit_code, 0) << arguments << "\n" << result.err;
    return result;
  }

  /// It must fail as bad input does: exit code 2, one line of the right form, no file made, changed
  /// or removed. Returns that line.
  std::string refusal(const std::string& arguments) const {
    const std::vector<std::string> before = listing();
    const Result result = run(arguments);
    EXPECT_EQ(result.exit_code, 2) << arguments << "\n" << result.err;
    EXPECT_EQ(result.out, "") << arguments;
    EXPECT_TRUE(result.err.starts_with("mutilde: error: ")) << arguments << "\n" << result.err;
    EXPECT_EQ(result.err.find('\n'), result.err.size() - 1) << arguments << "\n" << result.err;
    EXPECT_EQ(listing(), before) << arguments;
    return result.err;
  }

  /// A folder of small random pictures of three classes.
  void make_images(const std::string& name, int count, int size) const {
    fs::create_directories(work() / name);
    const char* classes[] = {"cat", "dog", "owl"};
    unsigned state = 12345;
    for (int i = 0; i < count; ++i) {
      Image image(size, size, 3);
      for (uint8_t& pixel : image.pixels) {
        state = state * 1664525U + 1013904223U;
        pixel = static_cast<uint8_t>(state >> 24);
      }
      write_png(work() / name / fmt::format("{}_{}.png", classes[i % 3], i), image);
    }
  }

  fs::path folder_;

 private:
  std::vector<std::string> listing() const {
    std::vector<std::string> entries;
    for (const auto& entry : fs::recursive_directory_iterator(work())) {
      const auto size = entry.is_regular_file() ? entry.file_size() : 0;
      entries.push_back(fmt::format("{} {}", entry.path().string(), size));
    }
    std::sort(entries.begin(), entries.end());
    return entries;
  }
};

}  // namespace mutilde::test
