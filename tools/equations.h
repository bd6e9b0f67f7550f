// The equation map: docs/equations.toml binds each equation of the papers to the functions that
// implement it and the tests that prove it. Here it is read, checked against the source, and
// written out as docs/equations.md.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace mutilde::equations {

/// A function or class, and the file that defines it (not merely declares it).
struct Definition {
  std::string name;  // "q_sample", or "Class::method"
  std::string file;  // from the repository root
};

struct Equation {
  std::string id;  // as the tag in the code reads: "11" for `Eq. 11`, "DDIM 12" for `Eq. DDIM 12`
  std::string title;
  std::string latex;
  std::string note;  // may be empty
  std::vector<Definition> functions;
  std::vector<std::string> tests;  // "Suite.Name"
};

/// Reads ROOT/docs/equations.toml. Throws std::runtime_error, naming the entry, where a field is
/// missing, of the wrong type, or unknown.
std::vector<Equation> read_equations(const std::filesystem::path& root);

/// docs/equations.md as text. Links name files and not lines, so that an edit elsewhere in a file
/// does not make the page stale.
std::string render_page(const std::vector<Equation>& equations, const std::filesystem::path& root);

/// Everything that is wrong between the equations, the code, the tests and the page; one line each.
/// Empty if all is well.
std::vector<std::string> check(const std::filesystem::path& root);

}  // namespace mutilde::equations
