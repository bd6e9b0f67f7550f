// A thin vector type on the vector extensions that GCC and clang share: a + b, a * b, a < b work
// lane by lane, and the compiler picks the instructions of the machine it builds for.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

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

/// rows[i][j] becomes rows[j][i]. Each round riffles row i with row i + half; in the address (row,
/// column) of an element that turns the bits by one place, and as many rounds as there are bits in
/// the row swap it with the column.
template <class T>
inline void transpose(Vec<T> (&rows)[kLanes<T>]) {
  constexpr int kHalf = kLanes<T> / 2;
  for (int round = 1; round < kLanes<T>; round *= 2) {
    Vec<T> riffled[kLanes<T>];
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) {
      const Vec<T> a = rows[i], b = rows[i + kHalf];
      [&]<int... j>(std::integer_sequence<int, j...>) {
        riffled[2 * i] = __builtin_shufflevector(a, b, (j / 2 + j % 2 * kLanes<T>)...);
        riffled[2 * i + 1] = __builtin_shufflevector(a, b, (kHalf + j / 2 + j % 2 * kLanes<T>)...);
      }
      (std::make_integer_sequence<int, kLanes<T>>());
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) rows[i] = riffled[i];
  }
}

/// Two factors of a product rounded to bfloat16, which is the upper half of a float: the first in the
/// lower half. The micro-kernel takes a pair as one step.
using Bf16Pair = uint32_t;
#if defined(__AVX512BF16__)
inline constexpr bool kHasBf16 = true;
#else
inline constexpr bool kHasBf16 = false;
#endif

/// x rounded to bfloat16, to even at a tie: the upper half of each lane. A NaN stays one.
inline Vec<uint32_t> round_to_bf16(Vec<float> x) {
  const Vec<uint32_t> bits = (Vec<uint32_t>)x;
  const Vec<uint32_t> rounded = bits + (0x7fffu + ((bits >> 16) & 1u));
  return (x == x ? rounded : bits | 0x400000u) & 0xffff0000u;
}
inline Vec<Bf16Pair> pair_up(Vec<float> first, Vec<float> second) {
  return (round_to_bf16(first) >> 16) | round_to_bf16(second);
}
/// Each lane as bfloat16, one after the other.
inline void store_bf16(uint16_t* to, Vec<float> x) {
#if defined(__AVX512BF16__)
  const auto halves = _mm512_cvtneps_pbh((__m512)x);
#else
  typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
  const Halves halves = __builtin_convertvector(round_to_bf16(x) >> 16, Halves);
#endif
  __builtin_memcpy(to, &halves, sizeof halves);
}

/// a * b + c where the factors are pairs: both terms.
inline Vec<float> fma(Vec<Bf16Pair> a, Vec<Bf16Pair> b, Vec<float> c) {
#if defined(__AVX512BF16__)
  return (Vec<float>)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
#else
  const auto first = [](Vec<Bf16Pair> v) { return (Vec<float>)(v << 16); };
  const auto second = [](Vec<Bf16Pair> v) { return (Vec<float>)(v & 0xffff0000u); };
  return fma(first(a), first(b), fma(second(a), second(b), c));
#endif
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
