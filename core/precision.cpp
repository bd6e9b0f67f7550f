#include "core/precision.h"

#include <atomic>

namespace mutilde {
namespace {

std::atomic<Precision> current = Precision::kFloat32;

}  // namespace

Precision product_precision() { return current.load(std::memory_order_relaxed); }

void set_product_precision(Precision precision) {
  current.store(precision, std::memory_order_relaxed);
}

DType factor_dtype(DType dtype) {
  if (dtype != DType::kFloat32) return dtype;
  switch (product_precision()) {
    case Precision::kFloat32:
      return DType::kFloat32;
    case Precision::kBfloat16:
      return DType::kBFloat16;
    case Precision::kFloat16:
      return DType::kFloat16;
  }
  return dtype;
}

}  // namespace mutilde
