// For tests of the emulation: its options for the length of a test, and the message of a fault.
#pragma once

#include <string>

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

}  // namespace mutilde::emulation
