// The examples of CONTRIBUTING.md and README.md are code of this tree, and stay so.
#include <fstream>
#include <sstream>
#include <string>

#include <gtest/gtest.h>

namespace {

std::string read(const std::string& path) {
  std::ifstream file(std::string(MUTILDE_SOURCE_DIR) + "/" + path);
  EXPECT_TRUE(file) << path;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

/// How many code blocks of a document have a file named right above them. Each must stand there.
int blocks_found_in_their_files(const std::string& document) {
  const std::string text = read(document), opening = "`:\n\n```cpp\n", closing = "\n```";
  int blocks = 0;
  for (size_t at = text.find(opening); at != std::string::npos; at = text.find(opening, at + 1)) {
    const size_t name = text.rfind('`', at - 1) + 1, begin = at + opening.size();
    const std::string file = text.substr(name, at - name);
    const std::string code = text.substr(begin, text.find(closing, begin) - begin);
    EXPECT_NE(read(file).find(code), std::string::npos) << file << " does not contain\n" << code;
    ++blocks;
  }
  return blocks;
}

TEST(Documents, EachCodeBlockStandsInTheFileThatTheLineAboveItNames) {
  EXPECT_EQ(blocks_found_in_their_files("CONTRIBUTING.md"), 15);
  EXPECT_EQ(blocks_found_in_their_files("README.md"), 1);
}

}  // namespace
