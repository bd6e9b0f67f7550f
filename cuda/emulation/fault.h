// What the emulation says when a kernel breaks a rule of CUDA.
#pragma once

#include <string>

#include "core/error.h"

namespace mutilde::emulation {

/// A fault in a kernel or in its launch. The message names the kernel, the block, the thread and
/// the call with its line.
class KernelFault : public Error {
 public:
  using Error::Error;
};

/// Where a kernel called something. As a default argument, `here()` is the caller's line.
struct CallSite {
  const char* file = "";
  int line = 0;

  static constexpr CallSite here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator==(const CallSite&) const = default;
  std::string to_string() const;  // "reduce.cu:42"
};

}  // namespace mutilde::emulation
