// Stands in for CUDA's header of this name: half, 1 + 5 + 10 bits.
//
// Arithmetic is in float, rounded once more to half. For + - * / that is the correctly rounded
// result: a float has 24 significant bits, just twice a half's 11 and two.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

// NOLINTBEGIN(readability-identifier-naming, bugprone-reserved-identifier): CUDA's names.
// NOLINTBEGIN(google-explicit-constructor): CUDA's conversions are implicit.

class __half {
 public:
  __half() = default;  // not initialised, so that it can be in __shared__
  __half(float value) : bits_(round_to_half(value)) {}
  operator float() const {
    const uint32_t sign = (bits_ & 0x8000U) << 16, exponent = bits_ >> 10 & 0x1f,
                   fraction = bits_ & 0x3ffU;
    if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0) {  // zero or subnormal: a multiple of 2^-24
      const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
      return sign != 0 ? -magnitude : magnitude;
    }
    // The exponents' biases are 15 and 127.
    return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
  }

  friend __half operator+(__half a, __half b) { return float{a} + float{b}; }
  friend __half operator-(__half a, __half b) { return float{a} - float{b}; }
  friend __half operator*(__half a, __half b) { return float{a} * float{b}; }
  friend __half operator/(__half a, __half b) { return float{a} / float{b}; }
  friend __half operator-(__half a) { return -float{a}; }
  friend __half& operator+=(__half& a, __half b) { return a = a + b; }
  friend __half& operator*=(__half& a, __half b) { return a = a * b; }

 private:
  /// To nearest, ties to even.
  static uint16_t round_to_half(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    const float magnitude = std::fabs(value);
    if (std::isnan(value)) return 0x7fff;
    if (magnitude >= 65520.0F) return sign | 0x7c00;  // half way from the largest half on: infinity
    if (magnitude < 0x1p-14F) {
      // Subnormal: at this size the spacing of floats is that of halves, 2^-24, so that the
      // addition rounds.
      const float shifted = magnitude + 0.5F;
      return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000));
    }
    // As for bfloat16, with 13 bits to lose; then the exponent's bias changes from 127 to 15.
    const uint32_t kept = ((bits & 0x7fffffff) + 0xfff + (bits >> 13 & 1)) >> 13;
    return static_cast<uint16_t>(sign | (kept - (112U << 10)));
  }

  uint16_t bits_;
};

inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline unsigned short __half_as_ushort(__half x) { return std::bit_cast<unsigned short>(x); }
inline __half __ushort_as_half(unsigned short x) { return std::bit_cast<__half>(x); }

// NOLINTEND(google-explicit-constructor)
// NOLINTEND(readability-identifier-naming, bugprone-reserved-identifier)
