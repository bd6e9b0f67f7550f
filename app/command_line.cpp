#include "app/command_line.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include <CLI/CLI.hpp>
#include <unistd.h>

#include "app/help.h"
#include "app/suggest.h"

namespace mutilde::app {

namespace {

std::optional<bool> parse_bool(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  if (text == "true" || text == "yes" || text == "t" || text == "y" || text == "1") return true;
  if (text == "false" || text == "no" || text == "f" || text == "n" || text == "0") return false;
  return std::nullopt;
}

template <class T>
T parse_number(const std::string& name, const std::string& text, const char* wanted) {
  T value{};
  const char* const end = text.data() + text.size();
  const auto [next, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc{} || next != end || !std::isfinite(static_cast<double>(value))) {
    fail<UsageError>("{}: '{}' is not {}", name, text, wanted);
  }
  return value;
}

std::string first_name(const std::string& names) { return names.substr(0, names.find(',')); }

}  // namespace

CommandLine::CommandLine(std::string command, std::string summary, std::string usage,
                         std::string examples)
    : command_(std::move(command)),
      usage_(std::move(usage)),
      examples_(std::move(examples)),
      app_(std::make_unique<CLI::App>(std::move(summary))) {
  app_->set_help_flag();  // normalised() looks for it, so that it works next to any mistake
}

CommandLine::CommandLine(CommandLine&&) noexcept = default;
CommandLine::~CommandLine() = default;

CLI::Option* CommandLine::add_parsed(const std::string& names, const std::string& help,
                                     const std::string& placeholder,
                                     const std::string& shown_default,
                                     std::function<void(const std::string&)> parse) {
  return app_->add_option_function<std::string>(names, std::move(parse), help)
      ->group(group_)
      ->type_name(placeholder)
      ->default_str(shown_default)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
}

void CommandLine::add(const std::string& names, int64_t& value, const std::string& help) {
  add_parsed(names, help, "N", std::to_string(value),
             [&value, name = first_name(names)](const std::string& text) {
               value = parse_number<int64_t>(name, text, "a whole number");
             });
}

void CommandLine::add(const std::string& names, double& value, const std::string& help) {
  add_parsed(names, help, "X", fmt::format("{}", value),
             [&value, name = first_name(names)](const std::string& text) {
               value = parse_number<double>(name, text, "a number");
             });
}

void CommandLine::add(const std::string& names, bool& value, const std::string& help) {
  const CLI::Option* option =
      add_parsed(names, help, "", value ? "True" : "False",
                 [&value, name = first_name(names)](const std::string& text) {
                   const std::optional<bool> parsed = parse_bool(text);
                   if (!parsed) fail<UsageError>("{}: '{}' is neither True nor False", name, text);
                   value = *parsed;
                 });
  for (const std::string& name : option->get_lnames()) booleans_.insert("--" + name);
}

void CommandLine::add(const std::string& names, std::string& value, const std::string& help,
                      const std::string& placeholder, const std::vector<std::string>& choices) {
  const std::string shown =
      choices.empty() ? placeholder : fmt::format("{}", fmt::join(choices, "|"));
  add_parsed(
      names, help, shown, value,
      [&value, choices, name = first_name(names)](const std::string& text) {
        if (!choices.empty() && std::find(choices.begin(), choices.end(), text) == choices.end()) {
          const std::string guess = suggestion(text, choices);
          fail<UsageError>("{}: unknown value '{}'{}{}", name, text,
                           guess.empty() ? "; one of: " : guess,
                           guess.empty() ? fmt::format("{}", fmt::join(choices, ", ")) : "");
        }
        value = text;
      });
}

void CommandLine::add_positional(const std::string& name, std::string& value,
                                 const std::string& help) {
  positional_ = name;
  app_->add_option(name, value, help);
}

void CommandLine::add_settings(Settings& settings, SettingGroup settings_group,
                               const std::set<std::string>& except) {
  for (const SettingField& field : setting_fields()) {
    if (field.group != settings_group || except.contains(field.name)) continue;
    std::string names = fmt::format("--{}", field.name);
    // Two names of the original program for what is one setting here.
    if (names == "--image_size") names += ",--large_size";
    if (names == "--data") names += ",--data_dir";
    if (const auto* text = std::get_if<std::string Settings::*>(&field.member)) {
      add(names, settings.**text, field.help, "LIST", field.choices);
    } else {
      std::visit(
          [&](auto member) {
            if constexpr (!std::is_same_v<decltype(member), std::string Settings::*>) {
              add(names, settings.*member, field.help);
            }
          },
          field.member);
    }
  }
}

std::vector<std::string> CommandLine::flag_names() const {
  std::vector<std::string> names{"--help"};
  for (const CLI::Option* option : app_->get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

/// Each flag as a pair of its name and its value; what stands for nothing
/// that we know is refused here.
std::vector<std::string> CommandLine::normalised(const std::vector<std::string>& arguments) const {
  const std::vector<std::string> names = flag_names();
  std::vector<std::string> result;
  int positionals = 0;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument.size() < 2 || argument[0] != '-') {
      if (positional_.empty() || ++positionals > 1) {
        const bool after_boolean = i > 0 && booleans_.contains(arguments[i - 1]);
        const std::vector<std::string> truths{"True", "False"};
        fail<UsageError>("unexpected argument '{}'{}", argument,
                         after_boolean ? suggestion(argument, truths) : "");
      }
      result.push_back(argument);
      continue;
    }
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(0, equals);
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      const std::string guess = suggestion(name, names);
      fail<UsageError>("unknown flag '{}'{}{}", name, guess,
                       guess.empty() ? fmt::format("; see 'mutilde {} --help'", command_) : "");
    }
    result.push_back(name);
    const bool last = i + 1 == arguments.size();
    if (equals != std::string::npos) {
      result.push_back(argument.substr(equals + 1));
    } else if (booleans_.contains(name)) {
      result.push_back(!last && parse_bool(arguments[i + 1]) ? arguments[++i] : "True");
    } else if (last || arguments[i + 1].starts_with("--")) {
      fail<UsageError>("{} needs a value", name);
    } else {
      result.push_back(arguments[++i]);
    }
  }
  return result;
}

bool CommandLine::parse(const std::vector<std::string>& arguments) {
  for (const std::string& argument : arguments) {
    if (argument == "-h" || argument == "--help") {
      fmt::print("{}", help());
      return false;
    }
  }
  std::vector<std::string> reversed = normalised(arguments);  // CLI11 takes them from the back
  std::reverse(reversed.begin(), reversed.end());
  try {
    app_->parse(std::move(reversed));
  } catch (const CLI::ParseError& error) {
    fail<UsageError>("{}", error.what());
  }
  return true;
}

bool CommandLine::given(const std::string& name) const { return app_->count(name) > 0; }

std::vector<const SettingField*> CommandLine::given_settings() const {
  std::vector<const SettingField*> fields;
  for (const SettingField& field : setting_fields()) {
    const std::string name = fmt::format("--{}", field.name);
    if (app_->get_option_no_throw(name) != nullptr && given(name)) fields.push_back(&field);
  }
  return fields;
}

std::string CommandLine::help() const { return help_text(*app_, usage_, examples_); }

}  // namespace mutilde::app
