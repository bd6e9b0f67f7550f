// The example of CONTRIBUTING.md is code of this tree, and stays so.
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

TEST(Contributing, EachCodeBlockStandsInTheFileThatTheLineAboveItNames) {
  const std::string text = read("CONTRIBUTING.md"), opening = "`:\n\n```cpp\n", closing = "```";
  int blocks = 0;
  for (size_t at = text.find(opening); at != std::string::npos; at = text.find(opening, at + 1)) {
    const size_t name = text.rfind('`', at - 1) + 1, begin = at + opening.size();
    const std::string file = text.substr(name, at - name);
    const std::string code = text.substr(begin, text.find(closing, begin) - begin);
    EXPECT_NE(read(file).find(code), std::string::npos) << file << " does not contain\n" << code;
    ++blocks;
  }
  EXPECT_EQ(blocks, 5);
}

}  // namespace
