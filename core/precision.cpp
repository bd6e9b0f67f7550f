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

}  // namespace mutilde
