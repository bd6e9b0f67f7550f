// The functions that kernels call beside those of <cmath>. The fast ones of CUDA (__expf, ...) are
// less exact than these stand-ins: a tolerance must be derived for the hardware's.
#pragma once

#include <bit>
#include <cmath>
#include <concepts>
#include <numbers>
#include <type_traits>

#include <math.h>

// NOLINTBEGIN(readability-identifier-naming, bugprone-reserved-identifier): CUDA's names.

inline float rsqrtf(float x) { return 1.0F / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }

// glibc declares functions of these four names, and does not define them.
extern "C" {
inline float __expf(float x) noexcept { return std::exp(x); }
inline float __logf(float x) noexcept { return std::log(x); }
inline float __sinf(float x) noexcept { return std::sin(x); }
inline float __cosf(float x) noexcept { return std::cos(x); }
}

/// sin(pi x) and cos(pi x). The nearest half turn is taken off exactly, which is what they are for.
inline void sincospi(double x, double* sin, double* cos) {
  const double half_turns = std::nearbyint(2 * x), rest = (x - half_turns / 2) * std::numbers::pi;
  const double s = std::sin(rest), c = std::cos(rest);
  switch (static_cast<long long>(half_turns) & 3) {
    case 0:
      return void(*sin = s), void(*cos = c);
    case 1:
      return void(*sin = c), void(*cos = -s);
    case 2:
      return void(*sin = -s), void(*cos = -c);
    default:
      return void(*sin = -c), void(*cos = s);
  }
}
inline void sincospif(float x, float* sin, float* cos) {
  double exact_sin, exact_cos;
  sincospi(x, &exact_sin, &exact_cos);
  *sin = static_cast<float>(exact_sin);
  *cos = static_cast<float>(exact_cos);
}

inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0F / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0F) : 0.0F; }  // NaN gives 0

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
/// The place of the lowest set bit, counted from 1; 0 if none is set.
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
/// The high half of the product.
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}

/// A load through the read-only cache.
template <class T>
T __ldg(const T* address) {
  return *address;
}

// CUDA has these outside of std. Of a NaN and a number they give the number.
template <class T>
requires std::is_arithmetic_v<T> T min(T a, std::type_identity_t<T> b) {
  if constexpr (std::floating_point<T>) {
    return std::fmin(a, b);
  } else {
    return b < a ? b : a;
  }
}
template <class T>
requires std::is_arithmetic_v<T> T max(T a, std::type_identity_t<T> b) {
  if constexpr (std::floating_point<T>) {
    return std::fmax(a, b);
  } else {
    return a < b ? b : a;
  }
}

// NOLINTEND(readability-identifier-naming, bugprone-reserved-identifier)
