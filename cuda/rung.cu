#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "cuda/hopper/hopper.h"
#include "cuda/rung.h"

namespace mutilde::cuda {

Rung best_rung(DType dtype) {
  if (!is_short(factor_dtype(dtype))) return Rung::kTiled;
  return is_hopper() ? Rung::kHopper : Rung::kMma;
}

Rung rung_for(DType dtype, Rung asked) {
  const bool has_it = multiplies_short(asked) ? is_short(factor_dtype(dtype))
                      : asked == Rung::kWmma  ? dtype != DType::kFloat64
                                              : asked != Rung::kAutomatic;
  return has_it ? asked : best_rung(dtype);
}

Rung rung_named(const char* name) {
  constexpr struct {
    const char* name;
    Rung rung;
  } kNames[] = {{"auto", Rung::kAutomatic}, {"plain", Rung::kPlain}, {"tiled", Rung::kTiled},
                {"wmma", Rung::kWmma},      {"mma", Rung::kMma},     {"wgmma", Rung::kHopper}};
  for (const auto& known : kNames) {
    if (std::strcmp(name, known.name) == 0) return known.rung;
  }
  fail<Error>("MUTILDE_CUDA_RUNG is '{}': auto, plain, tiled, wmma, mma or wgmma expected", name);
}

Rung rung_from_environment() {
  const char* name = std::getenv("MUTILDE_CUDA_RUNG");
  return name == nullptr ? Rung::kAutomatic : rung_named(name);
}

}  // namespace mutilde::cuda
