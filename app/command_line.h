// The flags of one command: CLI11 with the manners that we want on top. `--flag`, `--flag True` and
// `--flag=true` set a boolean; a mistyped flag or value is answered with the nearest valid one; the
// help is grouped, wrapped and shows defaults.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/error.h"
#include "diffusion/settings.h"

// CLI11 takes long to compile, so only the parser and its help include it.
namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace mutilde::app {

/// Wrong use of the command line; the message names the flag.
class UsageError : public Error {
 public:
  using Error::Error;
};

class CommandLine {
 public:
  /// `usage` is what follows "Usage: " in the help; `examples` is printed below the flags.
  CommandLine(std::string command, std::string summary, std::string usage, std::string examples);
  CommandLine(CommandLine&&) noexcept;
  ~CommandLine();

  /// Flags added from here on are listed under this heading.
  void group(const std::string& name) { group_ = name; }

  // Flags. `names`: "--data,--data_dir", the first is shown.
  // `value` holds the default and is overwritten.
  void add(const std::string& names, int64_t& value, const std::string& help);
  void add(const std::string& names, double& value, const std::string& help);
  void add(const std::string& names, bool& value, const std::string& help);
  void add(const std::string& names, std::string& value, const std::string& help,
           const std::string& placeholder = "TEXT", const std::vector<std::string>& choices = {});
  /// The one argument that is not a flag.
  void add_positional(const std::string& name, std::string& value, const std::string& help);
  /// A flag for every setting of the group, but for those named in `except`.
  void add_settings(Settings& settings, SettingGroup group,
                    const std::set<std::string>& except = {});

  /// False after it printed the help that `--help` asked for. Throws UsageError.
  bool parse(const std::vector<std::string>& arguments);
  /// If the flag (any of its names) stood on the command line.
  bool given(const std::string& name) const;
  /// Settings that stood on the command line.
  std::vector<const SettingField*> given_settings() const;

  /// The `mutilde train --steps 10 ...` that was parsed, for messages.
  const std::string& command() const { return command_; }
  std::string help() const;

 private:
  CLI::Option* add_parsed(const std::string& names, const std::string& help,
                          const std::string& placeholder, const std::string& shown_default,
                          std::function<void(const std::string&)> parse);
  std::vector<std::string> normalised(const std::vector<std::string>& arguments) const;
  std::vector<std::string> flag_names() const;

  std::string command_, usage_, examples_, group_ = "Flags", positional_;
  std::unique_ptr<CLI::App> app_;
  std::set<std::string> booleans_;  // names of boolean flags
};

}  // namespace mutilde::app
