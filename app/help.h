// The text that --help prints.
#pragma once

#include <cstddef>
#include <string>

namespace CLI {
class App;
}

namespace mutilde::app {

/// The text broken at spaces into lines of at most `width` characters, each but the first after
/// `indent` spaces.
std::string wrapped(const std::string& text, size_t width, size_t indent);

/// Summary, usage, flags by group with their defaults, examples.
std::string help_text(const CLI::App& app, const std::string& usage, const std::string& examples);

}  // namespace mutilde::app
