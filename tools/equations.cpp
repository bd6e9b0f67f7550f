#include "tools/equations.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>

#include <toml++/toml.h>

#include "tools/cpp_source.h"
#include "tools/latex.h"

namespace mutilde::equations {
namespace {

namespace fs = std::filesystem;

constexpr int kFirstRequired = 1, kLastRequired = 19;  // of "Improved DDPM"
// The folders whose tags must have an equation; a tag elsewhere (a tutorial's, say) is not checked.
constexpr const char* kTaggedFolders[] = {"core", "cuda", "nn", "diffusion"};
constexpr const char* kPage = "docs/equations.md";

std::string read_file(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(stream), {}};
}

/// The source files under ROOT/folder, sorted, so that reports come in the same order everywhere.
std::vector<fs::path> source_files(const fs::path& root, const std::string& folder) {
  static const std::set<std::string> kExtensions = {".h", ".cpp", ".cu", ".cuh"};
  std::vector<fs::path> files;
  if (!fs::is_directory(root / folder)) return files;
  for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
    if (entry.is_regular_file() && kExtensions.count(entry.path().extension().string()) != 0) {
      files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::string from_root(const fs::path& path, const fs::path& root) {
  return path.lexically_relative(root).generic_string();
}

/// "Suite.Name" -> the file that holds it, from the root.
std::map<std::string, std::string> test_files(const fs::path& root) {
  std::map<std::string, std::string> files;
  for (const fs::path& file : source_files(root, "tests")) {
    for (const std::string& test : find_tests(blank_comments_and_strings(read_file(file)))) {
      files.emplace(test, from_root(file, root));
    }
  }
  return files;
}

std::string trim(const std::string& text) {
  const std::size_t begin = text.find_first_not_of(" \n");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \n") - begin + 1);
}

/// Takes `key` out of `table`, so that what is left over are keys that nobody knows.
std::string take_string(toml::table& table, std::string_view key) {
  const auto value = table[key].value<std::string>();
  if (!value) throw std::runtime_error("\"" + std::string(key) + "\" must be a string");
  table.erase(key);
  return trim(*value);
}

toml::array take_array(toml::table& table, std::string_view key) {
  const toml::array* value = table[key].as_array();
  if (value == nullptr) throw std::runtime_error("\"" + std::string(key) + "\" must be a list");
  toml::array array = *value;
  table.erase(key);
  return array;
}

void reject_unknown(const toml::table& table) {
  if (table.empty()) return;
  throw std::runtime_error("unknown key \"" + std::string(table.begin()->first.str()) + "\"");
}

Equation read_equation(toml::table table) {
  Equation equation;
  equation.id = take_string(table, "id");
  try {
    equation.title = take_string(table, "title");
    equation.latex = take_string(table, "latex");
    if (table.contains("note")) equation.note = take_string(table, "note");
    for (toml::node& node : take_array(table, "functions")) {
      if (!node.is_table()) throw std::runtime_error("a function needs { name = , file = }");
      toml::table& function = *node.as_table();
      const std::string name = take_string(function, "name");
      equation.functions.push_back({name, take_string(function, "file")});
      reject_unknown(function);
    }
    for (toml::node& node : take_array(table, "tests")) {
      const auto test = node.value<std::string>();
      if (!test) throw std::runtime_error("a test must be a string, \"Suite.Name\"");
      equation.tests.push_back(*test);
    }
    reject_unknown(table);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error("Eq. " + equation.id + ": " + error.what());
  }
  return equation;
}

bool has_tag(const std::string& text, const std::string& id) {
  const auto tags = find_equation_tags(text);
  return std::any_of(tags.begin(), tags.end(),
                     [&](const EquationTag& tag) { return tag.id == id; });
}

/// The functions of one equation: each defined where it is said to be, with the tag on it.
void check_functions(const Equation& equation, const fs::path& root,
                     std::vector<std::string>& problems) {
  const std::string label = "Eq. " + equation.id + ": ";
  if (equation.functions.empty()) problems.push_back(label + "names no function");
  for (const auto& [name, file] : equation.functions) {
    if (!fs::is_regular_file(root / file)) {
      problems.push_back(label + "there is no file " + file + " (for " + name + ")");
      continue;
    }
    const std::string text = read_file(root / file);
    const auto definitions = find_definitions(blank_comments_and_strings(text), name);
    if (definitions.empty()) {
      problems.push_back(label + file + " does not define " + name);
      continue;
    }
    const bool tagged =
        std::any_of(definitions.begin(), definitions.end(), [&](const TextRange& definition) {
          return has_tag(text.substr(definition.begin, definition.end - definition.begin),
                         equation.id);
        });
    if (!tagged) {
      problems.push_back(label + name + " in " + file + " does not carry the tag \"Eq. " +
                         equation.id + "\", in it or in the comment above it");
    }
  }
}

void check_tests(const Equation& equation, const std::map<std::string, std::string>& tests,
                 std::vector<std::string>& problems) {
  const std::string label = "Eq. " + equation.id + ": ";
  if (equation.tests.empty()) problems.push_back(label + "names no test");
  for (const std::string& test : equation.tests) {
    if (tests.count(test) == 0) problems.push_back(label + "there is no test " + test);
  }
}

void check_latex(const std::vector<Equation>& equations, std::vector<std::string>& problems) {
  const std::size_t before = problems.size();
  const auto report = [&](const Equation& equation, const std::string& problem) {
    problems.push_back("Eq. " + equation.id + ": LaTeX: " + problem);
  };
  std::string together;
  for (const Equation& equation : equations) {
    for (const std::string& problem : latex_problems(equation.latex)) report(equation, problem);
    together += "{" + equation.latex + "}\n";
  }
  if (problems.size() != before || !katex_is_available()) return;
  // katex takes a quarter of a second to start: look for the culprit only if there is one.
  if (katex_problem(together).empty()) return;
  for (const Equation& equation : equations) {
    const std::string problem = katex_problem(equation.latex);
    if (!problem.empty()) report(equation, problem);
  }
}

void check_tags(const std::set<std::string>& ids, const fs::path& root,
                std::vector<std::string>& problems) {
  for (const char* folder : kTaggedFolders) {
    for (const fs::path& file : source_files(root, folder)) {
      for (const EquationTag& tag : find_equation_tags(read_file(file))) {
        if (ids.count(tag.id) != 0) continue;
        problems.push_back(from_root(file, root) + ":" + std::to_string(tag.line) + ": Eq. " +
                           tag.id + " is not in docs/equations.toml");
      }
    }
  }
}

/// An entry of an equation's list, on two lines if one would be longer than the other pages' are.
std::string list_entry(const std::string& kind, const std::string& name, const std::string& file) {
  const std::string what = "- " + kind + ": `" + name + "`",
                    where = "in [" + file + "](../" + file + ")";
  return what + (what.size() + 1 + where.size() > 110 ? "\n  " : " ") + where + "\n";
}

}  // namespace

std::vector<Equation> read_equations(const fs::path& root) {
  const fs::path path = root / "docs/equations.toml";
  std::vector<Equation> equations;
  try {
    toml::table file = toml::parse(read_file(path));
    for (toml::node& node : take_array(file, "equation")) {
      if (!node.is_table()) throw std::runtime_error("\"equation\" must be a list of tables");
      equations.push_back(read_equation(*node.as_table()));
    }
    reject_unknown(file);
  } catch (const toml::parse_error& error) {
    throw std::runtime_error(path.string() + ":" + std::to_string(error.source().begin.line) +
                             ": " + std::string(error.description()));
  }
  return equations;
}

std::string render_page(const std::vector<Equation>& equations, const fs::path& root) {
  const auto tests = test_files(root);
  std::ostringstream page;
  page << "<!-- Generated from equations.toml by tools/equations: edit that file, "
          "not this one. -->\n"
          "# The equations, and where they live\n\n"
          "Equations 1-19 are numbered as in Nichol and Dhariwal, *Improved Denoising Diffusion\n"
          "Probabilistic Models* ([arXiv 2102.09672](https://arxiv.org/abs/2102.09672)), "
          "DDIM's as in Song, Meng\nand Ermon, *Denoising Diffusion Implicit Models*\n"
          "([arXiv 2010.02502](https://arxiv.org/abs/2010.02502)), in the first paper's symbols. "
          "The papers count $t$\nfrom 1, the code from 0. "
          "Search the code for `Eq. 11` to find the line that implements equation 11.\n";
  for (const Equation& equation : equations) {
    page << "\n## Eq. " << equation.id << "\n\n"
         << equation.title << ".\n\n```math\n"
         << equation.latex << "\n```\n\n";
    if (!equation.note.empty()) page << equation.note << "\n\n";
    for (const auto& [name, file] : equation.functions) {
      page << list_entry("Code", name, file);
    }
    for (const std::string& test : equation.tests) {
      const auto found = tests.find(test);
      page << list_entry("Test", test, found == tests.end() ? "?" : found->second);
    }
  }
  return page.str();
}

std::vector<std::string> check(const fs::path& root) {
  std::vector<std::string> problems;
  const auto equations = read_equations(root);
  const auto tests = test_files(root);
  std::set<std::string> ids;
  for (const Equation& equation : equations) {
    if (!ids.insert(equation.id).second) problems.push_back("Eq. " + equation.id + " comes twice");
    check_functions(equation, root, problems);
    check_tests(equation, tests, problems);
  }
  check_latex(equations, problems);
  for (int number = kFirstRequired; number <= kLastRequired; ++number) {
    if (ids.count(std::to_string(number)) == 0) {
      problems.push_back("Eq. " + std::to_string(number) + " is missing in docs/equations.toml");
    }
  }
  check_tags(ids, root, problems);
  const bool page_is_current =
      fs::is_regular_file(root / kPage) && read_file(root / kPage) == render_page(equations, root);
  if (!page_is_current) {
    problems.push_back(std::string(kPage) + " is not up to date: run equations --generate");
  }
  return problems;
}

}  // namespace mutilde::equations
