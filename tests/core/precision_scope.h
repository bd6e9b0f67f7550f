#pragma once

#include "core/precision.h"

namespace mutilde {

/// Products are computed so for as long as it lives.
class PrecisionScope {
 public:
  explicit PrecisionScope(Precision precision) { set_product_precision(precision); }
  ~PrecisionScope() { set_product_precision(before_); }
  PrecisionScope(const PrecisionScope&) = delete;
  PrecisionScope& operator=(const PrecisionScope&) = delete;

 private:
  Precision before_ = product_precision();
};

}  // namespace mutilde
