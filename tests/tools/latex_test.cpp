#include "tools/latex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mutilde {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(Latex, AcceptsWhatPairsUp) {
  EXPECT_THAT(
      latex_problems(R"(\begin{aligned} a &= \left( \frac{1}{2} \right] \\ \{ b \end{aligned})"),
      IsEmpty());
}

TEST(Latex, ReportsBracesThatDoNotPairUp) {
  EXPECT_THAT(latex_problems(R"(\frac{1}{2)"), ElementsAre("{ is never closed"));
  EXPECT_THAT(latex_problems("1}"), ElementsAre("} closes nothing"));
  EXPECT_THAT(latex_problems(R"({1\})"), ElementsAre("{ is never closed"));
}

TEST(Latex, ReportsLeftWithoutRight) {
  EXPECT_THAT(latex_problems(R"(\left( 1)"), ElementsAre("\\left is never closed"));
  EXPECT_THAT(latex_problems(R"(1 \right))"), ElementsAre("\\right closes nothing"));
  EXPECT_THAT(latex_problems(R"({\left( 1} \right))"),
              ElementsAre("} closes \\left", "{ is never closed"));
}

TEST(Latex, ReportsEnvironmentsThatDoNotPairUp) {
  EXPECT_THAT(latex_problems(R"(\begin{cases} 1)"), ElementsAre("\\begin{cases} is never closed"));
  EXPECT_THAT(
      latex_problems(R"(\begin{cases} 1 \end{aligned})"),
      ElementsAre("\\end{aligned} closes \\begin{cases}", "\\begin{cases} is never closed"));
}

TEST(Latex, ReportsUnknownCommandsAndBreaksOfTheDisplay) {
  EXPECT_THAT(latex_problems(R"(\fraq{1}{2})"), ElementsAre("unknown command \\fraq"));
  EXPECT_THAT(latex_problems("a\n\nb"), ElementsAre("holds a blank line"));
  EXPECT_THAT(latex_problems("$a$"), ElementsAre("$ inside a display", "$ inside a display"));
}

TEST(Latex, KatexFindsWhatPairingCannot) {
  if (!katex_is_available()) GTEST_SKIP() << "no working katex on the PATH";
  EXPECT_EQ(katex_problem(R"(\frac{1}{2})"), "");
  EXPECT_THAT(katex_problem("x_1_2"), ::testing::HasSubstr("Double subscript"));
}

}  // namespace
}  // namespace mutilde
