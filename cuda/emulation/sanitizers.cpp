#include "cuda/emulation/sanitizers.h"

#include <cstdio>

namespace mutilde::emulation {
namespace {

std::string (*current_place)() = nullptr;

void report() {
  const std::string where = current_place == nullptr ? "" : current_place();
  if (!where.empty()) std::fprintf(stderr, "emulation: in %s\n", where.c_str());
}

}  // namespace

void report_on_death(std::string (*where)()) {
  current_place = where;
#ifdef MUTILDE_ASAN
  __sanitizer_set_death_callback(report);
#else
  static_cast<void>(report);
#endif
}

}  // namespace mutilde::emulation

#ifdef MUTILDE_ASAN
// The undefined-behaviour sanitizer's hook, called after each report.
extern "C" void __ubsan_on_report();  // NOLINT(bugprone-reserved-identifier)
extern "C" void __ubsan_on_report() { mutilde::emulation::report(); }  // NOLINT
#endif
