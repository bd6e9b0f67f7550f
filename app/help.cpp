#include "app/help.h"

#include <algorithm>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

namespace mutilde::app {

namespace {

constexpr size_t kWidth = 100;
constexpr size_t kFlagColumn = 34;  // where the explanations start

std::string left_side(const CLI::Option& option) {
  if (option.get_lnames().empty()) return option.get_name(/*positional=*/true);
  std::string names;
  for (const std::string& name : option.get_lnames())
    names += fmt::format("{}--{}", names.empty() ? "" : ", ", name);
  const std::string type = option.get_type_name();
  return type.empty() ? names : fmt::format("{} {}", names, type);
}

std::string option_line(const CLI::Option& option) {
  std::string text = option.get_description();
  const std::string& value = option.get_default_str();
  if (!value.empty() && value != "False") text += fmt::format(" [{}]", value);
  const std::string left = fmt::format("  {}", left_side(option));
  const std::string right = wrapped(text, kWidth - kFlagColumn, kFlagColumn);
  if (left.size() + 2 > kFlagColumn)
    return fmt::format("{}\n{:{}}{}\n", left, "", kFlagColumn, right);
  return fmt::format("{:<{}}{}\n", left, kFlagColumn, right);
}

}  // namespace

std::string wrapped(const std::string& text, size_t width, size_t indent) {
  std::string result;
  size_t line = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at), text.size());
    const size_t word = end - at;
    if (line > 0 && line + 1 + word > width) {
      result += '\n' + std::string(indent, ' ');
      line = 0;
    } else if (line > 0) {
      result += ' ';
      ++line;
    }
    result += text.substr(at, word);
    line += word;
    at = end + 1;
  }
  return result;
}

std::string help_text(const CLI::App& app, const std::string& usage, const std::string& examples) {
  std::string text =
      fmt::format("{}\n\nUsage: {}\n", wrapped(app.get_description(), kWidth, 0), usage);
  std::vector<std::string> groups;
  for (const CLI::Option* option : app.get_options()) {
    const std::string& group = option->get_group();
    if (std::find(groups.begin(), groups.end(), group) == groups.end()) groups.push_back(group);
  }
  for (const std::string& group : groups) {
    text += fmt::format("\n{}:\n", group);
    for (const CLI::Option* option : app.get_options()) {
      if (option->get_group() == group) text += option_line(*option);
    }
  }
  const auto options = app.get_options();
  const auto is_switch = [](const CLI::Option* option) {
    return !option->get_lnames().empty() && option->get_type_name().empty();
  };
  if (std::any_of(options.begin(), options.end(), is_switch)) {
    text +=
        "\nA flag without a value is a switch: "
        "--flag or --flag True sets it, --flag False does not.\n";
  }
  if (!examples.empty()) text += fmt::format("\nExamples:\n{}", examples);
  return text;
}

}  // namespace mutilde::app
