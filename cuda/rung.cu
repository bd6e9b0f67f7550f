#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "cuda/hopper/hopper.h"
#include "cuda/rung.h"

namespace mutilde::cuda {

bool multiplies_bfloat16(DType dtype) {
  return dtype == DType::kBFloat16 ||
         (dtype == DType::kFloat32 && product_precision() == Precision::kBfloat16);
}

Rung best_rung(DType dtype) {
  if (!multiplies_bfloat16(dtype)) return Rung::kTiled;
  return is_hopper() ? Rung::kHopper : Rung::kTensorCores;
}

Rung rung_for(DType dtype, Rung asked) {
  const bool has_it = asked == Rung::kHopper        ? multiplies_bfloat16(dtype)
                      : asked == Rung::kTensorCores ? dtype != DType::kFloat64
                                                    : asked != Rung::kAutomatic;
  return has_it ? asked : best_rung(dtype);
}

Rung rung_named(const char* name) {
  constexpr struct {
    const char* name;
    Rung rung;
  } kNames[] = {{"auto", Rung::kAutomatic},
                {"plain", Rung::kPlain},
                {"tiled", Rung::kTiled},
                {"wmma", Rung::kTensorCores},
                {"wgmma", Rung::kHopper}};
  for (const auto& known : kNames) {
    if (std::strcmp(name, known.name) == 0) return known.rung;
  }
  fail<Error>("MUTILDE_CUDA_RUNG is '{}': auto, plain, tiled, wmma or wgmma expected", name);
}

Rung rung_from_environment() {
  const char* name = std::getenv("MUTILDE_CUDA_RUNG");
  return name == nullptr ? Rung::kAutomatic : rung_named(name);
}

}  // namespace mutilde::cuda
