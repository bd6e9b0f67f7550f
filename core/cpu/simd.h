// A thin vector type on the vector extensions that GCC and clang share: a + b, a * b, a < b work
// lane by lane, and the compiler picks the instructions of the machine it builds for.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace mutilde::simd {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
/// kLanes<T> elements of type T.
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

/// Neither load nor store needs an aligned address.
template <class T>
inline Vec<T> load(const T* from) {
  Vec<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
template <class T>
inline void store(T* to, Vec<T> v) {
  __builtin_memcpy(to, &v, sizeof v);
}
/// x in every lane. (x - 0 and not x + 0, which would turn -0 into 0.)
template <class T>
inline Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}
/// The first `count` lanes (none if negative); the others are zero, or keep what memory holds.
template <class T>
inline Vec<T> load_partial(const T* from, int64_t count) {
  Vec<T> v{};
  for (int i = 0; i < kLanes<T>; ++i) {
    if (i < count) v[i] = from[i];
  }
  return v;
}
template <class T>
inline void store_partial(T* to, Vec<T> v, int64_t count) {
  for (int i = 0; i < kLanes<T>; ++i) {
    if (i < count) to[i] = v[i];
  }
}

/// a * b + c in one rounding where the machine can: one expression, which both compilers contract.
template <class V>
inline V fma(V a, V b, V c) {
  return a * b + c;
}
template <class V>
inline V max(V a, V b) {
  return a > b ? a : b;
}

template <class T>
inline T horizontal_sum(Vec<T> v) {
  T sum = 0;
  for (int i = 0; i < kLanes<T>; ++i) sum += v[i];
  return sum;
}
template <class T>
inline T horizontal_max(Vec<T> v) {
  T best = v[0];
  for (int i = 1; i < kLanes<T>; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// The logarithms of the largest and of the least normal number.
inline constexpr float kHighestExponent = 88.72283f, kLowestExponent = -87.33654f;

/// e^x in each lane, within 2 units in the last place, for x between the two logarithms.
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by a polynomial (Cephes' coefficients), times 2^n by
/// adding n to the exponent's bits.
inline Vec<float> exp_in_range(Vec<float> x) {
  // 1.5 * 2^23: adding it rounds to an integer in the low bits.
  constexpr float kRound = 12582912.0f;
  const Vec<float> shifted = x * 1.44269504088896341f + kRound;
  const Vec<float> n = shifted - kRound;
  Vec<float> r = x - n * 0.693359375f;  // ln 2 in two parts: n times the first is exact
  r = r - n * -2.12194440e-4f;
  Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  using Bits = Vec<int32_t>;
  return (Vec<float>)((Bits)p + ((Bits)shifted << 23));
}

/// e^x in each lane, within 2 units in the last place (subnormal results become 0).
inline Vec<float> exp(Vec<float> x) {
  const Vec<float> highest = broadcast(kHighestExponent), lowest = broadcast(kLowestExponent);
  const Vec<float> y = exp_in_range(x > highest ? highest : (x < lowest ? lowest : x));
  const Vec<float> infinity = broadcast(std::numeric_limits<float>::infinity());
  // Above the highest, and for a NaN, whose payload the sum of bits would corrupt: x + infinity.
  return x <= highest ? (x < lowest ? Vec<float>{} : y) : x + infinity;
}

/// The same for weights of a softmax, in fewer instructions: beyond the two logarithms (infinities,
/// too) it gives the largest number, and about 2^-126. A NaN stays one.
inline Vec<float> exp_of_weight(Vec<float> x) {
  const Vec<float> highest = broadcast(kHighestExponent), lowest = broadcast(kLowestExponent);
  const Vec<float> y = exp_in_range(x > highest ? highest : (lowest > x ? lowest : x));
  return x == x ? y : x;
}
inline Vec<double> exp(Vec<double> x) {
  Vec<double> y{};
  for (int i = 0; i < kLanes<double>; ++i) y[i] = std::exp(x[i]);
  return y;
}

inline Vec<double> exp_of_weight(Vec<double> x) { return exp(x); }

/// 1 / (1 + e^-x).
template <class V>
inline V sigmoid(V x) {
  return 1 / (1 + exp(-x));
}

}  // namespace mutilde::simd
