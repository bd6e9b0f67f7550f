#include "tools/latex.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

namespace mutilde {
namespace {

// What docs/equations.toml needs. katex knows more, but is not installed everywhere, and a misspelt
// command is the commonest mistake. Sorted.
constexpr auto kCommands = std::to_array<std::string_view>({
    "Big",          "Bigl",   "Bigr",    "Sigma",      "Vert",         "alpha", "approx", "bar",
    "begin",        "beta",   "big",     "bigl",       "bigr",         "bigg",  "biggl",  "biggr",
    "cdot",         "cos",    "delta",   "dfrac",      "displaystyle", "dots",  "end",    "epsilon",
    "eta",          "exp",    "frac",    "ge",         "geq",          "hat",   "in",     "infty",
    "lVert",        "lambda", "ldots",   "le",         "left",         "leq",   "log",    "lvert",
    "mathbb",       "mathbf", "mathcal", "mathrm",     "max",          "mid",   "min",    "mu",
    "operatorname", "pi",     "prod",    "propto",     "qquad",        "quad",  "rVert",  "right",
    "rvert",        "sigma",  "sim",     "sqrt",       "sum",          "text",  "theta",  "tilde",
    "underbrace",   "times",  "to",      "varepsilon", "vert",
});

std::vector<std::string_view> sorted_commands() {
  std::vector<std::string_view> commands(kCommands.begin(), kCommands.end());
  std::sort(commands.begin(), commands.end());
  return commands;
}

bool is_letter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }

/// Reads the name in `{name}` at `at`, which then stands behind it.
std::string read_group(std::string_view latex, std::size_t& at) {
  if (at >= latex.size() || latex[at] != '{') return "";
  const std::size_t close = std::min(latex.find('}', at), latex.size());
  std::string name(latex.substr(at + 1, close - at - 1));
  at = std::min(close + 1, latex.size());
  return name;
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::random_device random;
    path_ = std::filesystem::temp_directory_path() / ("mutilde-latex-" + std::to_string(random()));
    std::filesystem::create_directory(path_);
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace

std::vector<std::string> latex_problems(std::string_view latex) {
  static const auto kKnown = sorted_commands();
  std::vector<std::string> problems;
  std::vector<std::string> open;  // what must close, the innermost last
  const auto close = [&](const std::string& opening, const std::string& closing) {
    if (!open.empty() && open.back() == opening) {
      open.pop_back();
    } else {
      problems.push_back(closing + " closes " + (open.empty() ? "nothing" : open.back()));
    }
  };

  if (latex.find("\n\n") != std::string_view::npos) problems.emplace_back("holds a blank line");
  for (std::size_t i = 0; i < latex.size();) {
    const char c = latex[i++];
    if (c == '{') open.emplace_back("{");
    if (c == '}') close("{", "}");
    if (c == '$') problems.emplace_back("$ inside a display");
    if (c != '\\') continue;
    if (i < latex.size() && !is_letter(latex[i])) {  // \{, \\, \, and the like
      ++i;
      continue;
    }
    const std::size_t begin = i;
    while (i < latex.size() && is_letter(latex[i])) ++i;
    const std::string command(latex.substr(begin, i - begin));
    if (command == "begin") {
      open.push_back("\\begin{" + read_group(latex, i) + "}");
    } else if (command == "end") {
      const std::string name = read_group(latex, i);
      close("\\begin{" + name + "}", "\\end{" + name + "}");
    } else if (command == "left") {
      open.emplace_back("\\left");
    } else if (command == "right") {
      close("\\left", "\\right");
    } else if (!std::binary_search(kKnown.begin(), kKnown.end(), std::string_view(command))) {
      problems.push_back("unknown command \\" + command);
    }
  }
  for (const std::string& unclosed : open) problems.push_back(unclosed + " is never closed");
  return problems;
}

bool katex_is_available() {
  // A katex that cannot run (its packages and its node disagree) says nothing about our LaTeX.
  static const bool kAvailable =
      std::system("command -v katex >/dev/null 2>&1") == 0 && katex_problem("x").empty();
  return kAvailable;
}

std::string katex_problem(std::string_view latex) {
  const TemporaryFolder folder;
  const auto input = folder.path() / "equation.tex";
  const auto errors = folder.path() / "errors";
  std::ofstream(input) << latex;
  // Debian's katex needs Debian's modules, which another node on the PATH does not look for.
  const std::string command = "NODE_PATH=/usr/share/nodejs katex --display-mode <'" +
                              input.string() + "' >/dev/null 2>'" + errors.string() + "'";
  if (std::system(command.c_str()) == 0) return "";
  std::ifstream stream(errors);
  const std::string text((std::istreambuf_iterator<char>(stream)), {});
  // The line that says it; around it, katex's whole source and a stack trace.
  const std::string label = "[ParseError]: ";
  const std::size_t start = text.rfind(label);
  if (start == std::string::npos) return "katex failed";
  const std::size_t begin = start + label.size();
  return text.substr(begin, text.find('\n', begin) - begin);
}

}  // namespace mutilde
