#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "cuda/rung.h"

namespace mutilde::cuda {

Rung rung_named(const char* name) {
  constexpr struct {
    const char* name;
    Rung rung;
  } kNames[] = {{"auto", Rung::kAutomatic},
                {"plain", Rung::kPlain},
                {"tiled", Rung::kTiled},
                {"wmma", Rung::kTensorCores}};
  for (const auto& known : kNames) {
    if (std::strcmp(name, known.name) == 0) return known.rung;
  }
  fail<Error>("MUTILDE_CUDA_RUNG is '{}': auto, plain, tiled or wmma expected", name);
}

Rung rung_from_environment() {
  const char* name = std::getenv("MUTILDE_CUDA_RUNG");
  return name == nullptr ? Rung::kAutomatic : rung_named(name);
}

}  // namespace mutilde::cuda
