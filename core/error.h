// Errors: one line that names the operation, what was given and what was expected.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include <fmt/format.h>

namespace mutilde {

/// The base of everything that mutilde throws. The command line turns it into one line and exit
/// code 2.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A shape (or an axis, or a count of elements) that does not fit the operation.
class ShapeError : public Error {
 public:
  using Error::Error;
};

/// A dtype that the operation does not take.
class DTypeError : public Error {
 public:
  using Error::Error;
};

/// Misuse of the tape: a second walk of a freed graph, a root without a cotangent.
class AutogradError : public Error {
 public:
  using Error::Error;
};

/// More memory asked than there is.
class OutOfMemoryError : public Error {
 public:
  using Error::Error;
};

/// A file that is missing, cut short, or not what it claims to be.
class FileError : public Error {
 public:
  using Error::Error;
};

/// Throws ErrorType with a formatted message: `fail<ShapeError>("conv2d: ...", ...)`.
template <class ErrorType, class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw ErrorType(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace mutilde
