#include "core/cpu_isa.h"

#include <array>
#include <cstdlib>
#include <string>

#include "core/error.h"

namespace mutilde {

#if defined(MUTILDE_ALL_ISAS)
// core/cpu/kernels.cpp again, compiled and renamed by cmake/mutilde_cpu_isas.cmake.
extern "C" const CpuKernels kMutildeCpuKernels_avx2;
extern "C" const CpuKernels kMutildeCpuKernels_avx512;
extern "C" const CpuKernels kMutildeCpuKernels_avx512bf16;
#endif

std::span<const CpuIsa> cpu_isas() {
#if defined(MUTILDE_ALL_ISAS)
  // What is asked for is what cmake/mutilde_cpu_isas.cmake compiles for, no less.
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  static const bool avx512 =
      avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  static const bool avx512bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  static const std::array<CpuIsa, 4> isas = {
      {{"plain", true, &kMutildeCpuKernels},
       {"avx2", avx2, &kMutildeCpuKernels_avx2},
       {"avx512", avx512, &kMutildeCpuKernels_avx512},
       {"avx512bf16", avx512bf16, &kMutildeCpuKernels_avx512bf16}}};
#elif defined(MUTILDE_NATIVE)
  static const std::array<CpuIsa, 1> isas = {{{"native", true, &kMutildeCpuKernels}}};
#else
  static const std::array<CpuIsa, 1> isas = {{{"plain", true, &kMutildeCpuKernels}}};
#endif
  return isas;
}

const CpuIsa& find_cpu_isa(std::string_view name) {
  const CpuIsa *fastest = nullptr, *found = nullptr;
  std::string choice;
  for (const CpuIsa& isa : cpu_isas()) {
    if (isa.name == name) found = &isa;
    if (!isa.runs_here) continue;
    fastest = &isa;
    choice += (choice.empty() ? "" : ", ") + std::string(isa.name);
  }
  if (name.empty()) return *fastest;
  if (found == nullptr)
    fail<Error>("MUTILDE_ISA is '{}', which this build does not have; here it can be: {}", name,
                choice);
  if (!found->runs_here)
    fail<Error>("MUTILDE_ISA is '{}', which this processor lacks; here it can be: {}", name,
                choice);
  return *found;
}

const CpuIsa& cpu_isa() {
  static const CpuIsa& isa = [&]() -> const CpuIsa& {
    const char* name = std::getenv("MUTILDE_ISA");
    return find_cpu_isa(name != nullptr ? name : "");
  }();
  return isa;
}

}  // namespace mutilde
