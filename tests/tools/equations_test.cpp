// The equation map's check, on a small repository of its own: it passes when all is well, and each
// planted fault is reported.
#include "tools/equations.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mutilde::equations {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// A repository in a temporary folder: equations 1-19 and DDIM 12, a function and a test for each.
class EquationMap : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    root_ = fs::path(::testing::TempDir()) / (std::string("equation_map_") + info->name());
    fs::remove_all(root_);
    std::vector<std::string> ids;
    for (int number = 1; number <= 19; ++number) ids.push_back(std::to_string(number));
    ids.emplace_back("DDIM 12");
    std::string map, header, code, tests;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::string name = "f_" + std::to_string(i + 1);
      map += "[[equation]]\nid = \"" + ids[i] + "\"\ntitle = \"The title of " + ids[i] +
             "\"\nlatex = '''\n\\frac{\\alpha_t}{2}\n'''\nfunctions = [{ name = \"" + name +
             "\", file = \"diffusion/all.cpp\" }]\ntests = [\"All." + name + "\"]\n\n";
      header += "double " + name + "(double x);\n";
      code += "// Eq. " + ids[i] + ".\ndouble " + name + "(double x) { return x; }\n\n";
      tests += "TEST(All, " + name + ") {}\n";
    }
    write("docs/equations.toml", map);
    write("diffusion/all.h", header);
    write("diffusion/all.cpp", code);
    write("tests/diffusion/all_test.cpp", tests);
    generate();
  }
  void TearDown() override { fs::remove_all(root_); }

  void generate() { write("docs/equations.md", render_page(read_equations(root_), root_)); }

  void write(const std::string& file, const std::string& text) {
    fs::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file, std::ios::binary) << text;
  }

  std::string read(const std::string& file) {
    std::ifstream stream(root_ / file, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  void replace(const std::string& file, const std::string& from, const std::string& to) {
    std::string text = read(file);
    const std::size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from << " is not in " << file;
    write(file, text.replace(at, from.size(), to));
  }

  /// What the check says once the page is up to date again, so that only the fault is left.
  std::vector<std::string> problems() {
    generate();
    return check(root_);
  }

  int run_tool(const std::string& arguments) {
    const std::string command = std::string("'") + EQUATIONS_TOOL + "' " + arguments + " '" +
                                root_.string() + "' >/dev/null 2>&1";
    return std::system(command.c_str());
  }

  fs::path root_;
};

TEST_F(EquationMap, PassesWhenAllIsWell) {
  EXPECT_THAT(check(root_), IsEmpty());
  EXPECT_EQ(run_tool("--check"), 0);
}

TEST_F(EquationMap, ReportsAFunctionThatIsGone) {
  replace("diffusion/all.cpp", "double f_11(", "double g_11(");
  EXPECT_THAT(problems(), ElementsAre("Eq. 11: diffusion/all.cpp does not define f_11"));
  EXPECT_NE(run_tool("--check"), 0);
}

TEST_F(EquationMap, TakesNoDeclarationForADefinition) {
  replace("docs/equations.toml", "name = \"f_11\", file = \"diffusion/all.cpp\"",
          "name = \"f_11\", file = \"diffusion/all.h\"");
  EXPECT_THAT(problems(), ElementsAre("Eq. 11: diffusion/all.h does not define f_11"));
}

TEST_F(EquationMap, ReportsAFileThatIsGone) {
  replace("docs/equations.toml", "name = \"f_9\", file = \"diffusion/all.cpp\"",
          "name = \"f_9\", file = \"diffusion/old.cpp\"");
  EXPECT_THAT(problems(), ElementsAre("Eq. 9: there is no file diffusion/old.cpp (for f_9)"));
}

TEST_F(EquationMap, ReportsATestThatIsGone) {
  replace("tests/diffusion/all_test.cpp", "TEST(All, f_8)", "TEST(All, renamed)");
  EXPECT_THAT(problems(), ElementsAre("Eq. 8: there is no test All.f_8"));
}

TEST_F(EquationMap, ReportsATestThatIsCommentedOut) {
  replace("tests/diffusion/all_test.cpp", "TEST(All, f_8)", "// TEST(All, f_8)");
  EXPECT_THAT(problems(), ElementsAre("Eq. 8: there is no test All.f_8"));
}

TEST_F(EquationMap, ReportsAnEquationWithoutATest) {
  replace("docs/equations.toml", "tests = [\"All.f_8\"]", "tests = []");
  EXPECT_THAT(problems(), ElementsAre("Eq. 8: names no test"));
}

TEST_F(EquationMap, ReportsAnOrphanTagInEachFolder) {
  write("core/a.h", "\n// Eq. 20.\n");
  write("nn/deep/b.cpp", "// Eq. DDIM 16.\n");
  write("diffusion/c.cpp", "// Eq. 18-20.\n");
  EXPECT_THAT(problems(), ElementsAre("core/a.h:2: Eq. 20 is not in docs/equations.toml",
                                      "nn/deep/b.cpp:1: Eq. DDIM 16 is not in docs/equations.toml",
                                      "diffusion/c.cpp:1: Eq. 20 is not in docs/equations.toml"));
}

TEST_F(EquationMap, ReportsAFunctionWithoutItsTag) {
  replace("diffusion/all.cpp", "// Eq. 13.\n", "");
  EXPECT_THAT(problems(), ElementsAre(HasSubstr("Eq. 13: f_13 in diffusion/all.cpp does not carry "
                                                "the tag \"Eq. 13\"")));
}

TEST_F(EquationMap, TakesNoOtherNumberForTheTag) {
  replace("diffusion/all.cpp", "// Eq. 3.\n", "// Eq. 13.\n");
  EXPECT_THAT(problems(), ElementsAre(HasSubstr("does not carry the tag \"Eq. 3\"")));
}

TEST_F(EquationMap, ReportsAMissingEquation) {
  replace("docs/equations.toml", "id = \"7\"", "id = \"7b\"");
  replace("diffusion/all.cpp", "// Eq. 7.", "// Eq. 8.");
  EXPECT_THAT(problems(),
              ElementsAre(HasSubstr("Eq. 7b: f_7"), "Eq. 7 is missing in docs/equations.toml"));
}

TEST_F(EquationMap, ReportsAnIdThatComesTwice) {
  replace("docs/equations.toml", "id = \"DDIM 12\"", "id = \"19\"");
  replace("diffusion/all.cpp", "Eq. DDIM 12", "Eq. 19");
  EXPECT_THAT(problems(), ElementsAre("Eq. 19 comes twice"));
}

TEST_F(EquationMap, ReportsWrongLatex) {
  replace("docs/equations.toml", "\\frac{\\alpha_t}{2}", "\\frac{\\alpha_t}{2");
  EXPECT_THAT(problems(), ElementsAre("Eq. 1: LaTeX: { is never closed"));
}

TEST_F(EquationMap, ReportsAStalePage) {
  replace("docs/equations.toml", "The title of 5", "A better title of 5");
  const std::string stale = "docs/equations.md is not up to date: run equations --generate";
  EXPECT_THAT(check(root_), ElementsAre(stale));
  fs::remove(root_ / "docs/equations.md");
  EXPECT_THAT(check(root_), ElementsAre(stale));
  EXPECT_EQ(run_tool("--generate"), 0);
  EXPECT_THAT(check(root_), IsEmpty());
}

TEST_F(EquationMap, PageDoesNotGoStaleWhenLinesMove) {
  write("diffusion/all.cpp", "\n\n\n" + read("diffusion/all.cpp"));
  EXPECT_THAT(check(root_), IsEmpty());
}

TEST_F(EquationMap, PageLinksCodeAndTest) {
  const std::string page = read("docs/equations.md");
  EXPECT_THAT(page,
              HasSubstr("## Eq. 11\n\nThe title of 11.\n\n```math\n\\frac{\\alpha_t}{2}\n```\n"
                        "\n- Code: `f_11` in [diffusion/all.cpp](../diffusion/all.cpp)\n"
                        "- Test: `All.f_11` in [tests/diffusion/all_test.cpp]"
                        "(../tests/diffusion/all_test.cpp)\n"));
}

TEST_F(EquationMap, NamesTheEntryOfAMisspeltKey) {
  replace("docs/equations.toml", "tests = [\"All.f_6\"]", "test = [\"All.f_6\"]");
  try {
    read_equations(root_);
    FAIL() << "read_equations accepted it";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "Eq. 6: \"tests\" must be a list");
  }
  EXPECT_NE(run_tool("--check"), 0);
}

TEST_F(EquationMap, NamesTheLineOfBrokenToml) {
  write("docs/equations.toml", "[[equation]]\nid = \n");
  try {
    read_equations(root_);
    FAIL() << "read_equations accepted it";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), HasSubstr("docs/equations.toml:2: "));
  }
}

}  // namespace
}  // namespace mutilde::equations
