// Random numbers from Philox blocks (core/random.h says which number comes from where).
#include "core/random.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <bit>
#include <cmath>
#include <cstring>
#include <numbers>

#include "core/cpu/cpu_backend.h"
#include "core/cpu/parallel.h"

namespace mutilde {
namespace {

constexpr int kBlocks = 16;  // made side by side
constexpr int kGroup = 4 * kBlocks;

#if defined(__AVX2__)
constexpr int kPerVector = 4;
#else
constexpr int kPerVector = 2;
#endif
constexpr int kVectors = kBlocks / kPerVector;
typedef uint64_t Lanes __attribute__((vector_size(8 * kPerVector)));

/// The low 32 bits of each lane of `a`, times m: one instruction, which
/// GCC does not find by itself.
Lanes widening_multiply(Lanes a, uint32_t m) {
#if defined(__AVX2__)
  return (Lanes)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(m));
#else
  return (a & uint64_t{0xffffffff}) * uint64_t{m};
#endif
}

/// The words of kBlocks blocks of a draw: word[j][b] is word j of block `first` + b, as
/// random_block() gives it. The ten rounds are those of philox4x32(), on many blocks at once; a
/// word lies in the low half of a 64-bit lane, and what is in the high half never matters.
struct Group {
  uint32_t word[4][kBlocks];

  Group(RandomPosition position, uint64_t first) {
    Lanes w[4][kVectors];
    for (int v = 0; v < kVectors; ++v) {
      uint64_t block[kPerVector];
      for (int i = 0; i < kPerVector; ++i) {
        block[i] = first + static_cast<uint64_t>(v * kPerVector + i);
      }
      std::memcpy(&w[0][v], block, sizeof block);
      w[1][v] = w[0][v] >> 32;
      w[2][v] = position.stream - Lanes{};
      w[3][v] = w[2][v] >> 32;
    }
    uint32_t key0 = static_cast<uint32_t>(position.seed);
    uint32_t key1 = static_cast<uint32_t>(position.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      for (int v = 0; v < kVectors; ++v) {
        const Lanes product0 = widening_multiply(w[0][v], 0xD2511F53);
        const Lanes product1 = widening_multiply(w[2][v], 0xCD9E8D57);
        w[0][v] = (product1 >> 32) ^ w[1][v] ^ static_cast<uint64_t>(key0);
        w[1][v] = product1;
        w[2][v] = (product0 >> 32) ^ w[3][v] ^ static_cast<uint64_t>(key1);
        w[3][v] = product0;
      }
      key0 += 0x9E3779B9;
      key1 += 0xBB67AE85;
    }
    for (int j = 0; j < 4; ++j) {
      for (int b = 0; b < kBlocks; ++b) {
        word[j][b] = static_cast<uint32_t>(w[j][b / kPerVector][b % kPerVector]);
      }
    }
  }
};

/// Calls group(first, count, words) for groups of elements that cover [0, n).
template <class F>
void for_groups(RandomPosition position, int64_t n, const F& group) {
  parallel_for((n + kGroup - 1) / kGroup, 64, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const Group words(position, position.offset / 4 + static_cast<uint64_t>(g) * kBlocks);
      group(g * kGroup, std::min<int64_t>(kGroup, n - g * kGroup), words);
    }
  });
}

/// [0, 1): the highest bits that the type holds exactly, 24 of the 32 in a float.
template <class T>
T uniform(uint32_t word) {
  if constexpr (sizeof(T) == 4) return static_cast<T>(static_cast<int32_t>(word >> 8)) * T{0x1p-24};
  return static_cast<T>(word) * T{0x1p-32};
}

/// (0, 1]: the same numbers, one step further, so that a logarithm is finite.
template <class T>
T positive_uniform(uint32_t word) {
  constexpr T kStep = sizeof(T) == 4 ? T{0x1p-24} : T{0x1p-32};
  return uniform<T>(word) + kStep;
}

/// ln u for a normal number u > 0, within 2 units in the last place:
/// u = 2^e m with m around 1, and a polynomial for ln m (Cephes' coefficients).
/// Without a branch, so that loops over it become vectors.
float fast_log(float u) {
  const int32_t bits = std::bit_cast<int32_t>(u);
  const int32_t e = (bits - 0x3f3504f3) >> 23;  // m from sqrt(1/2) to sqrt(2)
  const float f = std::bit_cast<float>(bits - e * (1 << 23)) - 1.0f;
  const float exponent = static_cast<float>(e);
  float p = 7.0376836292e-2f * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float square = f * f;
  p = p * f * square - 2.12194440e-4f * exponent - 0.5f * square;  // ln 2 in two parts
  return f + p + 0.693359375f * exponent;
}

struct CosSin {
  float cos, sin;
};

/// Of 2 pi * turn / 2^24. The nearest quarter turn is taken off exactly, as an integer;
/// polynomials serve the rest, at most an eighth of a turn; the quarter then swaps
/// the two and sets their signs.
CosSin cos_sin_of_turn(int32_t turn) {
  const int32_t quarter = (turn + (1 << 21)) >> 22;
  const float rest = static_cast<float>(turn - quarter * (1 << 22)) * 0x1p-24f;
  const float a = rest * (2 * std::numbers::pi_v<float>), z = a * a;
  float s = -1.9515295891e-4f * z + 8.3321608736e-3f;
  s = (s * z - 1.6666654611e-1f) * z * a + a;
  float c = 2.443315711809948e-5f * z - 1.388731625493765e-3f;
  c = (c * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1.0f;
  const uint32_t cos_bits = std::bit_cast<uint32_t>(c), sin_bits = std::bit_cast<uint32_t>(s);
  const uint32_t q = static_cast<uint32_t>(quarter), swap = 0 - (q & 1);
  const uint32_t cos_sign = ((q + 1) & 2) << 30, sin_sign = (q & 2) << 30;
  const uint32_t difference = (cos_bits ^ sin_bits) & swap;
  return {std::bit_cast<float>(cos_bits ^ difference ^ cos_sign),
          std::bit_cast<float>(sin_bits ^ difference ^ sin_sign)};
}

/// Box-Muller: words 0 and 1 of a block to two independent normals, words 2 and 3 to two more.
void normals(const Group& words, float* out) {
  for (int pair = 0; pair < 2; ++pair) {
    const uint32_t *radius_words = words.word[2 * pair], *angle_words = words.word[2 * pair + 1];
    float radius[kBlocks], a[kBlocks], b[kBlocks];
    for (int i = 0; i < kBlocks; ++i) {
      radius[i] = -2 * fast_log(positive_uniform<float>(radius_words[i]));
    }
    for (int i = 0; i < kBlocks; ++i) radius[i] = std::sqrt(radius[i]);
    for (int i = 0; i < kBlocks; ++i) {
      const auto [cos, sin] = cos_sin_of_turn(static_cast<int32_t>(angle_words[i] >> 8));
      a[i] = radius[i] * cos;
      b[i] = radius[i] * sin;
    }
    for (int i = 0; i < kBlocks; ++i) {
      out[4 * i + 2 * pair] = a[i];
      out[4 * i + 2 * pair + 1] = b[i];
    }
  }
}
void normals(const Group& words, double* out) {
  for (int i = 0; i < kBlocks; ++i) {
    for (int pair = 0; pair < 2; ++pair) {
      const double u = positive_uniform<double>(words.word[2 * pair][i]);
      const double angle = 2 * std::numbers::pi * uniform<double>(words.word[2 * pair + 1][i]);
      const double radius = std::sqrt(-2 * std::log(u));
      *out++ = radius * std::cos(angle);
      *out++ = radius * std::sin(angle);
    }
  }
}

template <class T>
void uniforms(const Group& words, T* out) {
  for (int i = 0; i < kBlocks; ++i) {
    for (int j = 0; j < 4; ++j) out[4 * i + j] = uniform<T>(words.word[j][i]);
  }
}

}  // namespace

void CpuBackend::fill_uniform(RandomPosition position, View out) {
  for_float(out.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_groups(position, out.numel(), [&](int64_t first, int64_t count, const Group& words) {
      T values[kGroup];
      uniforms(words, values);
      std::copy(values, values + count, out.as<T>() + first);
    });
  });
}

void CpuBackend::fill_normal(RandomPosition position, View out) {
  for_float(out.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_groups(position, out.numel(), [&](int64_t first, int64_t count, const Group& words) {
      T values[kGroup];
      normals(words, values);
      std::copy(values, values + count, out.as<T>() + first);
    });
  });
}

// Kept where the float32 uniform, word >> 8 over 2^24, is at least p: decided on the integers, so
// that the mask depends on the position alone and not on x's dtype.
void CpuBackend::dropout(ConstView x, double p, RandomPosition position, View out) {
  const int32_t threshold = static_cast<int32_t>(std::ceil(p * 0x1p24));
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T scale = static_cast<T>(1 / (1 - p));
    for_groups(position, x.numel(), [&](int64_t first, int64_t count, const Group& words) {
      int32_t draw[kGroup];
      for (int i = 0; i < kBlocks; ++i) {
        for (int j = 0; j < 4; ++j) draw[4 * i + j] = static_cast<int32_t>(words.word[j][i] >> 8);
      }
      const T* from = x.as<T>() + first;
      T* to = out.as<T>() + first;
      for (int64_t i = 0; i < count; ++i) {
        const T value = from[i];
        to[i] = (draw[i] >= threshold ? value : T{0}) * scale;
      }
    });
  });
}

}  // namespace mutilde
