// Random numbers from Philox blocks (core/random.h says which number comes from where).
#include "core/random.h"

#include <array>
#include <cmath>
#include <numbers>

#include "core/cpu/cpu_backend.h"
#include "core/cpu/parallel.h"

namespace mutilde {
namespace {

constexpr int64_t kGrain = 1024;  // blocks that repay waking a thread

/// Calls block_of_four(i, count, words) for elements i .. i + count - 1 (four, but at the end of
/// the draw) and the four words that they are made from.
template <class F>
void for_blocks(RandomPosition position, int64_t n, const F& block_of_four) {
  parallel_for((n + 3) / 4, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const auto words = random_block(position.seed, position.stream,
                                      position.offset / 4 + static_cast<uint64_t>(block));
      block_of_four(4 * block, std::min<int64_t>(4, n - 4 * block), words);
    }
  });
}

/// [0, 1): the highest bits that the type holds exactly, 24 of the 32 in a float.
template <class T>
T uniform(uint32_t word) {
  if constexpr (sizeof(T) == 4) return static_cast<T>(word >> 8) * T{0x1p-24};
  return static_cast<T>(word) * T{0x1p-32};
}

/// (0, 1]: the same numbers, one step further, so that a logarithm is finite.
template <class T>
T positive_uniform(uint32_t word) {
  constexpr T kStep = sizeof(T) == 4 ? T{0x1p-24} : T{0x1p-32};
  return uniform<T>(word) + kStep;
}

/// Box-Muller: two uniforms to two independent normals.
template <class T>
std::array<T, 2> normal_pair(uint32_t radius_word, uint32_t angle_word) {
  const T radius = std::sqrt(T{-2} * std::log(positive_uniform<T>(radius_word)));
  const T angle = T{2} * std::numbers::pi_v<T> * uniform<T>(angle_word);
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

}  // namespace

void CpuBackend::fill_uniform(RandomPosition position, View out) {
  for_float(out.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_blocks(position, out.numel(), [&](int64_t i, int64_t count, const auto& words) {
      for (int64_t j = 0; j < count; ++j) {
        out.as<T>()[i + j] = uniform<T>(words[static_cast<size_t>(j)]);
      }
    });
  });
}

void CpuBackend::fill_normal(RandomPosition position, View out) {
  for_float(out.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_blocks(position, out.numel(), [&](int64_t i, int64_t count, const auto& words) {
      const auto [a, b] = normal_pair<T>(words[0], words[1]);
      const auto [c, d] = normal_pair<T>(words[2], words[3]);
      const std::array<T, 4> normals{a, b, c, d};
      std::copy(normals.begin(), normals.begin() + count, out.as<T>() + i);
    });
  });
}

// The mask is made of the float32 uniforms whatever x's dtype is, so that it depends on the
// position alone.
void CpuBackend::dropout(ConstView x, double p, RandomPosition position, View out) {
  const float threshold = static_cast<float>(p);
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T scale = static_cast<T>(1 / (1 - p));
    for_blocks(position, x.numel(), [&](int64_t i, int64_t count, const auto& words) {
      for (int64_t j = 0; j < count; ++j) {
        const bool kept = uniform<float>(words[static_cast<size_t>(j)]) >= threshold;
        out.as<T>()[i + j] = kept ? x.as<T>()[i + j] * scale : T{0};
      }
    });
  });
}

}  // namespace mutilde
