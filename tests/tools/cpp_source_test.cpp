#include "tools/cpp_source.h"

#include <string>
#include <string_view>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mutilde {
namespace {

using ::testing::ElementsAre;

/// The text of the first definition, "" if there is none.
std::string definition(const std::string& text, std::string_view name) {
  const std::string blanked = blank_comments_and_strings(text);
  EXPECT_EQ(blanked.size(), text.size());
  const auto ranges = find_definitions(blanked, name);
  if (ranges.empty()) return "";
  return text.substr(ranges[0].begin, ranges[0].end - ranges[0].begin);
}

TEST(CppSource, BlanksCommentsAndStringsInPlace) {
  EXPECT_EQ(blank_comments_and_strings("a // b\nc /* d\ne */ f"), "a     \nc     \n     f");
  EXPECT_EQ(blank_comments_and_strings(R"(f("x\"{", '{', 1'000'000))"),
            R"(f("    ", ' ', 1'000'000))");
  EXPECT_EQ(blank_comments_and_strings("R\"a(})\" })a\" }"), std::string(13, ' ') + "}");
  EXPECT_EQ(blank_comments_and_strings("\"never closed"), '"' + std::string(12, ' '));
}

TEST(CppSource, FindsAFunctionWithTheCommentAboveIt) {
  EXPECT_EQ(definition(
                "int a;  // A note on a.\n// On f.\nint f(int x) {\n  return x;\n}\nint b;\n", "f"),
            "// On f.\nint f(int x) {\n  return x;\n}");
}

TEST(CppSource, TakesNoDeclarationCallOrCommentForADefinition) {
  EXPECT_EQ(definition("int f(int x);", "f"), "");
  EXPECT_EQ(definition("int g() { if (f(1)) { return f(2); } return a.f(3); }", "f"), "");
  EXPECT_EQ(definition("// int f() { return 1; }", "f"), "");
  EXPECT_EQ(definition("struct S { virtual int f() = 0; };", "f"), "");
  EXPECT_EQ(definition("S::S() : f(1), b{2} {}", "f"), "");
  EXPECT_EQ(definition("S::S() : a(1), f(2) {}", "f"), "");
}

TEST(CppSource, TakesNoPartOfANameForTheName) {
  EXPECT_EQ(definition("int q_sample_all() { return 1; }", "q_sample"), "");
  EXPECT_EQ(definition("int my_q_sample() { return 1; }", "q_sample"), "");
}

TEST(CppSource, FindsWhatStandsBetweenParametersAndBody) {
  for (const char* text :
       {"int A::f(int x) const noexcept { return x; }",
        "auto f() -> std::vector<int> { return {}; }",
        "int f(int x = g(1)) noexcept(true)\n{ return x; }", "template <typename T> T f(T x) {}",
        "A::f() : a_(1), b_{2}, c_(g(3)) { h(); }"}) {
    EXPECT_EQ(definition(text, "f"), text);
  }
}

TEST(CppSource, FindsAMethodByItsClass) {
  const std::string text =
      "struct A { int f() { return 1; } };\nstruct B { int f() { return 2; } int g(); };\n"
      "int B::g() { return 3; }\n";
  EXPECT_THAT(definition(text, "A::f"), ::testing::HasSubstr("return 1;"));
  EXPECT_THAT(definition(text, "B::f"), ::testing::HasSubstr("return 2;"));
  EXPECT_THAT(definition(text, "B::g"), ::testing::HasSubstr("return 3;"));
  EXPECT_EQ(definition(text, "A::g"), "");
}

TEST(CppSource, FindsAClassButNotItsForwardDeclaration) {
  EXPECT_EQ(definition("class A;\nclass B final : public C {\n  int x;\n};", "B"),
            "class B final : public C {\n  int x;\n}");
  EXPECT_EQ(definition("class A;\nint f(class A x) { return 1; }", "A"), "");
}

TEST(CppSource, FindsAllOverloads) {
  EXPECT_EQ(find_definitions("int f() { return f(1); }\nint f(int x) { return x; }", "f").size(),
            2U);
}

TEST(CppSource, FindsAConstructor) {
  EXPECT_EQ(definition("A::A(int x) : x_(x) { f(); }", "A::A"), "A::A(int x) : x_(x) { f(); }");
  EXPECT_EQ(definition("class A {\n public:\n  A() : x_(1) {}\n};", "A::A"),
            " public:\n  A() : x_(1) {}");
}

TEST(CppSource, FindsTestsOfEachKind) {
  EXPECT_THAT(find_tests("TEST(A, b) {}\nTEST_F(C,\n       d) {}\nTEST_P(E, f) {}\nMY_TEST(G, h)"),
              ElementsAre("A.b", "C.d", "E.f"));
}

TEST(CppSource, FindsTagsAndTheirLines) {
  const auto tags = find_equation_tags("// Eq. 11.\nx = 1;  // Eq. 4-7, Eq. DDIM 12\nSeq. 3 eq. 4");
  std::string found;
  for (const EquationTag& tag : tags) found += tag.id + "@" + std::to_string(tag.line) + " ";
  EXPECT_EQ(found, "11@1 4@2 5@2 6@2 7@2 DDIM 12@2 ");
}

}  // namespace
}  // namespace mutilde
