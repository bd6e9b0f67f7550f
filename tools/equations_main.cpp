// Keeps the equation map true.
//   equations --check [ROOT]      names everything that is wrong and exits with 1, or says nothing
//   equations --generate [ROOT]   writes ROOT/docs/equations.md
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

#include "tools/equations.h"
#include "tools/latex.h"

namespace {

int check(const std::filesystem::path& root) {
  const auto problems = mutilde::equations::check(root);
  for (const std::string& problem : problems) std::fprintf(stderr, "%s\n", problem.c_str());
  if (!mutilde::katex_is_available()) {
    std::puts("equations: no working katex on the PATH, so no equation was rendered");
  }
  return problems.empty() ? 0 : 1;
}

int generate(const std::filesystem::path& root) {
  const auto page = root / "docs/equations.md";
  std::ofstream stream(page, std::ios::binary);
  stream << mutilde::equations::render_page(mutilde::equations::read_equations(root), root);
  if (!stream.flush()) throw std::runtime_error("cannot write " + page.string());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  const std::filesystem::path root = argc > 2 ? argv[2] : ".";
  if (argc > 3 || (mode != "--check" && mode != "--generate")) {
    std::fprintf(stderr, "usage: equations --check|--generate [ROOT]\n");
    return 2;
  }
  try {
    return mode == "--check" ? check(root) : generate(root);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "equations: %s\n", error.what());
    return 1;
  }
}
