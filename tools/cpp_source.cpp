#include "tools/cpp_source.h"

#include <algorithm>
#include <cctype>
#include <optional>

namespace mutilde {
namespace {

constexpr auto kNowhere = std::string_view::npos;

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }
bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }

std::size_t skip_space(std::string_view text, std::size_t at) {
  while (at < text.size() && is_space(text[at])) ++at;
  return at;
}

/// The position after the bracket that closes the one at `open`; kNowhere if none does.
std::size_t after_closing(std::string_view text, std::size_t open) {
  const char opening = text[open];
  const char closing = opening == '(' ? ')' : opening == '[' ? ']' : '}';
  std::size_t depth = 0;
  for (std::size_t i = open; i < text.size(); ++i) {
    if (text[i] == opening) ++depth;
    if (text[i] == closing && --depth == 0) return i + 1;
  }
  return kNowhere;
}

/// The next occurrence of `word` as a whole word, from `from` on.
std::size_t find_word(std::string_view text, std::string_view word, std::size_t from) {
  for (std::size_t at = text.find(word, from); at != kNowhere; at = text.find(word, at + 1)) {
    const std::size_t end = at + word.size();
    const bool starts = at == 0 || !is_word(text[at - 1]);
    if (starts && (end == text.size() || !is_word(text[end]))) return at;
  }
  return kNowhere;
}

/// Skips space, then `c`; false if something else stands there.
bool skip_character(std::string_view text, std::size_t& at, char c) {
  at = skip_space(text, at);
  if (at >= text.size() || text[at] != c) return false;
  ++at;
  return true;
}

/// Skips space, then reads a word, which may be empty.
std::string_view read_word(std::string_view text, std::size_t& at) {
  at = skip_space(text, at);
  const std::size_t begin = at;
  while (at < text.size() && is_word(text[at])) ++at;
  return text.substr(begin, at - begin);
}

/// The number that `text` begins with, which is removed from it.
/// Four digits at most, so that it fits.
std::optional<int> take_number(std::string_view& text) {
  int number = 0;
  std::size_t digits = 0;
  for (; digits < text.size() && digits < 4 && text[digits] >= '0' && text[digits] <= '9';
       ++digits) {
    number = number * 10 + (text[digits] - '0');
  }
  text.remove_prefix(digits);
  return digits == 0 ? std::nullopt : std::optional<int>(number);
}

/// `at` follows a function's parameters: the position of its body's brace, or kNowhere if it has
/// none (a declaration or a call).
std::size_t find_body(std::string_view text, std::size_t at) {
  at = skip_space(text, at);
  while (at < text.size() && (is_word(text[at]) || text[at] == '&')) {  // const, noexcept, override
    while (at < text.size() && (is_word(text[at]) || text[at] == '&')) ++at;
    at = skip_space(text, at);
    if (at < text.size() && text[at] == '(') {  // noexcept(...)
      at = after_closing(text, at);
      if (at == kNowhere) return kNowhere;
      at = skip_space(text, at);
    }
  }
  if (text.substr(at, 2) == "->") at = text.find_first_of("{;", at);
  if (at >= text.size()) return kNowhere;
  if (text[at] == ':' && text.substr(at, 2) != "::") {  // a constructor's initialisers
    do {
      at = text.find_first_of("({;", at + 1);
      if (at == kNowhere || text[at] == ';') return kNowhere;
      at = after_closing(text, at);
      if (at == kNowhere) return kNowhere;
      at = skip_space(text, at);
    } while (at < text.size() && text[at] == ',');
  }
  return at < text.size() && text[at] == '{' ? at : kNowhere;
}

/// The start of the declaration that holds `at`, with the comment above it.
std::size_t find_head(std::string_view text, std::size_t at) {
  std::size_t begin = text.find_last_of(";{}", at);
  begin = begin == kNowhere ? 0 : begin + 1;
  // What is left of that line is a comment on the statement before.
  const std::size_t line_end = text.find('\n', begin);
  const bool rest_is_blank =
      line_end < at && std::all_of(text.begin() + static_cast<std::ptrdiff_t>(begin),
                                   text.begin() + static_cast<std::ptrdiff_t>(line_end), is_space);
  if (begin > 0 && rest_is_blank) begin = line_end + 1;
  return begin;
}

std::optional<TextRange> find_class(std::string_view text, std::string_view name) {
  for (std::size_t at = find_word(text, name, 0); at != kNowhere;
       at = find_word(text, name, at + 1)) {
    std::size_t key = at;
    while (key > 0 && is_space(text[key - 1])) --key;
    std::size_t key_begin = key;
    while (key_begin > 0 && is_word(text[key_begin - 1])) --key_begin;
    const std::string_view word = text.substr(key_begin, key - key_begin);
    if (word != "class" && word != "struct") continue;
    // Between the name and its body: `final`, base classes.
    const std::size_t body = text.find_first_of("{;()=", at);
    if (body == kNowhere || text[body] != '{') continue;
    const std::size_t end = after_closing(text, body);
    if (end != kNowhere) return TextRange{find_head(text, key_begin), end};
  }
  return std::nullopt;
}

/// Whether the name at `at` is initialised by a constructor: `: base(x) {` and `, member(x) {` look
/// like definitions otherwise. (After `public:` comes a definition.)
bool is_initialiser(std::string_view text, std::size_t at) {
  while (at > 0 && is_space(text[at - 1])) --at;
  if (at == 0) return false;
  if (text[at - 1] == ',') return true;
  if (text[at - 1] != ':' || text.substr(0, at).ends_with("::")) return false;
  const std::string_view before = text.substr(0, at - 1);
  return !before.ends_with("public") && !before.ends_with("protected") &&
         !before.ends_with("private");
}

/// A function's definitions that begin in `within`; `qualifier` ("Class::") must stand before the
/// name unless it is empty.
std::vector<TextRange> find_functions(std::string_view text, std::string_view qualifier,
                                      std::string_view name, TextRange within) {
  std::vector<TextRange> definitions;
  for (std::size_t at = find_word(text, name, within.begin); at < within.end;
       at = find_word(text, name, at + 1)) {
    if (!text.substr(0, at).ends_with(qualifier)) continue;
    const std::size_t open = skip_space(text, at + name.size());
    if (open >= text.size() || text[open] != '(') continue;
    if (is_initialiser(text, at)) continue;
    const std::size_t close = after_closing(text, open);
    if (close == kNowhere) continue;
    const std::size_t body = find_body(text, close);
    if (body == kNowhere) continue;
    const std::size_t end = after_closing(text, body);
    if (end != kNowhere) definitions.push_back({find_head(text, at), end});
  }
  return definitions;
}

}  // namespace

std::string blank_comments_and_strings(std::string_view text) {
  std::string blanked(text);
  const auto blank = [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < std::min(end, blanked.size()); ++i) {
      if (blanked[i] != '\n') blanked[i] = ' ';
    }
  };
  const auto end_of = [&](std::string_view closing, std::size_t from) {
    const std::size_t at = text.find(closing, from);
    return at == kNowhere ? text.size() : at + closing.size();
  };
  for (std::size_t i = 0; i < text.size();) {
    const std::string_view rest = text.substr(i);
    std::size_t end = i + 1;
    if (rest.starts_with("//")) {
      end = std::min(text.find('\n', i), text.size());
      blank(i, end);
    } else if (rest.starts_with("/*")) {
      end = end_of("*/", i + 2);
      blank(i, end);
    } else if (rest.starts_with("R\"") && (i == 0 || !is_word(text[i - 1]))) {
      const std::size_t open = std::min(text.find('(', i), text.size());
      std::string closing(1, ')');
      closing.append(text.substr(i + 2, open - i - 2)).push_back('"');
      end = end_of(closing, open);
      blank(i, end);
    } else if (rest[0] == '"' || (rest[0] == '\'' && (i == 0 || !is_word(text[i - 1])))) {
      // A quote after a word character separates digits, as in 1'000.
      while (end < text.size() && text[end] != rest[0] && text[end] != '\n') {
        end += text[end] == '\\' ? 2 : 1;
      }
      blank(i + 1, end);  // the quotes stay
      ++end;
    }
    i = end;
  }
  return blanked;
}

std::vector<TextRange> find_definitions(std::string_view blanked, std::string_view name) {
  const TextRange everywhere{0, blanked.size()};
  const std::size_t colons = name.rfind("::");
  if (colons == kNowhere) {
    const auto as_class = find_class(blanked, name);
    if (as_class) return {*as_class};
    return find_functions(blanked, "", name, everywhere);
  }
  const std::string_view method = name.substr(colons + 2);
  auto definitions = find_functions(blanked, name.substr(0, colons + 2), method, everywhere);
  if (const auto owner = find_class(blanked, name.substr(0, colons))) {
    for (const TextRange& inside : find_functions(blanked, "", method, *owner)) {
      definitions.push_back(inside);
    }
  }
  return definitions;
}

std::vector<std::string> find_tests(std::string_view blanked) {
  std::vector<std::string> tests;
  for (const std::string_view macro : {"TEST", "TEST_F", "TEST_P", "TYPED_TEST", "TYPED_TEST_P"}) {
    for (std::size_t at = find_word(blanked, macro, 0); at != kNowhere;
         at = find_word(blanked, macro, at + 1)) {
      std::size_t next = at + macro.size();
      if (!skip_character(blanked, next, '(')) continue;
      const std::string_view suite = read_word(blanked, next);
      if (suite.empty() || !skip_character(blanked, next, ',')) continue;
      const std::string_view name = read_word(blanked, next);
      if (name.empty() || !skip_character(blanked, next, ')')) continue;
      tests.push_back(std::string(suite) + "." + std::string(name));
    }
  }
  return tests;
}

std::vector<EquationTag> find_equation_tags(std::string_view text) {
  std::vector<EquationTag> tags;
  for (std::size_t at = find_word(text, "Eq", 0); at != kNowhere;
       at = find_word(text, "Eq", at + 1)) {
    std::string_view rest = text.substr(at + 2);
    if (!rest.starts_with(". ")) continue;
    rest.remove_prefix(2);
    std::string paper;
    if (rest.starts_with("DDIM ")) {
      paper = "DDIM ";
      rest.remove_prefix(paper.size());
    }
    const auto first = take_number(rest);
    if (!first) continue;
    int last = *first;
    if (rest.starts_with("-")) {
      rest.remove_prefix(1);
      last = std::max(take_number(rest).value_or(*first), *first);
    }
    const auto line =
        std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n');
    for (int number = *first; number <= last; ++number) {
      tags.push_back({paper + std::to_string(number), static_cast<std::size_t>(line) + 1});
    }
  }
  return tags;
}

}  // namespace mutilde
