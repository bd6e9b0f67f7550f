// Included first by every file of the WebAssembly build: what the standard library of Debian's
// emscripten, of 2021, lacks of C++20.
#pragma once

#include <bit>
#include <charconv>
#include <cstdlib>
#include <string>
#include <system_error>

namespace std {

template <class To, class From>
constexpr To bit_cast(const From& from) noexcept {
  return __builtin_bit_cast(To, from);
}

inline from_chars_result from_chars(const char* first, const char* last, double& value) {
  const string text(first, last);
  char* end = nullptr;
  const double parsed = strtod(text.c_str(), &end);
  if (end == text.c_str()) return {first, errc::invalid_argument};
  value = parsed;
  return {first + (end - text.c_str()), errc{}};
}

}  // namespace std
