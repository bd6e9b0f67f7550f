// For tests of the emulation: its options for the length of a test, and the message of a fault or of another error.
#pragma once

#include <string>

#include "core/error.h"
#include "cuda/emulation/fault.h"
#include "cuda/emulation/options.h"

namespace mutilde::emulation {

/// Sets options() back at the end of its scope.
class OptionsScope {
 public:
  OptionsScope() = default;
  ~OptionsScope() { options() = saved_; }
  OptionsScope(const OptionsScope&) = delete;
  OptionsScope& operator=(const OptionsScope&) = delete;

 private:
  Options saved_ = options();
};

/// What the KernelFault that f() throws says; "no fault" if it throws none.
template <class F>
std::string fault_of(const F& f) {
  try {
    f();
  } catch (const KernelFault& fault) {
    return fault.what();
  }
  return "no fault";
}

/// What the Error that f() throws says; "no error" if it throws none.
template <class F>
std::string error_of(const F& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace mutilde::emulation
