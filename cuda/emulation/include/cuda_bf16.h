// Stands in for CUDA's header of this name: bfloat16, the upper half of a float.
//
// Arithmetic is in float, rounded once more to bfloat16. For + - * / that is the correctly rounded
// result: a float has 24 significant bits, more than twice a bfloat16's 8 and two.
#pragma once

#include <bit>
#include <cstdint>

// NOLINTBEGIN(readability-identifier-naming, bugprone-reserved-identifier): CUDA's names.
// NOLINTBEGIN(google-explicit-constructor): CUDA's conversions are implicit.

class __nv_bfloat16 {
 public:
  __nv_bfloat16() = default;  // not initialised, so that it can be in __shared__
  __nv_bfloat16(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    if ((bits & 0x7fffffff) > 0x7f800000) {
      bits_ = 0x7fff;  // NaN
      return;
    }
    // To nearest, ties to even: just under half of the last kept bit, or exactly half where that
    // bit is odd, is what it takes to carry. The largest floats become infinity.
    bits_ = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits_) << 16); }

  friend __nv_bfloat16 operator+(__nv_bfloat16 a, __nv_bfloat16 b) { return float{a} + float{b}; }
  friend __nv_bfloat16 operator-(__nv_bfloat16 a, __nv_bfloat16 b) { return float{a} - float{b}; }
  friend __nv_bfloat16 operator*(__nv_bfloat16 a, __nv_bfloat16 b) { return float{a} * float{b}; }
  friend __nv_bfloat16 operator/(__nv_bfloat16 a, __nv_bfloat16 b) { return float{a} / float{b}; }
  friend __nv_bfloat16 operator-(__nv_bfloat16 a) { return -float{a}; }
  friend __nv_bfloat16& operator+=(__nv_bfloat16& a, __nv_bfloat16 b) { return a = a + b; }
  friend __nv_bfloat16& operator*=(__nv_bfloat16& a, __nv_bfloat16 b) { return a = a * b; }

 private:
  uint16_t bits_;
};

inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) {
  return std::bit_cast<unsigned short>(x);
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) {
  return std::bit_cast<__nv_bfloat16>(x);
}

// NOLINTEND(google-explicit-constructor)
// NOLINTEND(readability-identifier-naming, bugprone-reserved-identifier)
