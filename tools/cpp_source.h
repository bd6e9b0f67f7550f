// Finds things in C++ source without a compiler: enough for code formatted as ours is.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace mutilde {

/// The text with the inside of comments, strings and character literals replaced by spaces; line
/// breaks and positions stay.
std::string blank_comments_and_strings(std::string_view text);

/// [begin, end) in a text.
struct TextRange {
  std::size_t begin = 0;
  std::size_t end = 0;
};

/// Where `name` is defined, each from the comment above it to its closing brace; several if it is
/// overloaded. `name` is a function ("q_sample", also if it is a method), a method
/// ("Schedule::step"), a constructor ("Schedule::Schedule"), or a class ("Schedule"). Declarations
/// and calls do not count. `blanked` is blank_comments_and_strings' result.
std::vector<TextRange> find_definitions(std::string_view blanked, std::string_view name);

/// The GoogleTest cases in a text, as "Suite.Name".
std::vector<std::string> find_tests(std::string_view blanked);

/// An equation that the text refers to by a tag: `Eq. 11`, `Eq. 4-7` (four of them), `Eq. DDIM 12`.
struct EquationTag {
  std::string id;        // "11", "DDIM 12"
  std::size_t line = 0;  // from 1
};
std::vector<EquationTag> find_equation_tags(std::string_view text);

}  // namespace mutilde
