// Random numbers from Philox blocks; the end of core/random.h says which number comes from where.
// A thread a block of four, so that none of the ten rounds is done twice; what it writes are four
// neighbours, and a warp's stores fill whole lines between them.
#include <cmath>

#include "cuda/cuda_backend.h"
#include "cuda/parallel.h"

namespace mutilde::cuda {
namespace {

/// Words 0 to 3 of a block, as random_block() in core/random.h gives them.
struct Words {
  uint32_t word[4];

  __device__ Words(const RandomPosition& position, uint64_t block)
      : word{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
             static_cast<uint32_t>(position.stream), static_cast<uint32_t>(position.stream >> 32)} {
    uint32_t key0 = static_cast<uint32_t>(position.seed);
    uint32_t key1 = static_cast<uint32_t>(position.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t product0 = uint64_t{0xD2511F53} * word[0];
      const uint64_t product1 = uint64_t{0xCD9E8D57} * word[2];
      word[0] = static_cast<uint32_t>(product1 >> 32) ^ word[1] ^ key0;
      word[1] = static_cast<uint32_t>(product1);
      word[2] = static_cast<uint32_t>(product0 >> 32) ^ word[3] ^ key1;
      word[3] = static_cast<uint32_t>(product0);
      key0 += 0x9E3779B9;
      key1 += 0xBB67AE85;
    }
  }
};

/// [0, 1): the highest bits that the type holds exactly, 24 of the 32 in a float.
template <class T>
__device__ T uniform(uint32_t word) {
  if constexpr (sizeof(T) == 4) return static_cast<T>(word >> 8) * T{0x1p-24};
  return static_cast<T>(word) * T{0x1p-32};
}

__device__ inline void sin_cos_pi(float x, float* sin, float* cos) { sincospif(x, sin, cos); }
__device__ inline void sin_cos_pi(double x, double* sin, double* cos) { sincospi(x, sin, cos); }

// What becomes of the words of a block: four values.

struct Uniform {
  template <class T>
  __device__ void operator()(const Words& words, T (&value)[4]) const {
    for (int i = 0; i < 4; ++i) value[i] = uniform<T>(words.word[i]);
  }
};

/// Box-Muller, twice.
struct Normal {
  template <class T>
  __device__ void operator()(const Words& words, T (&value)[4]) const {
    constexpr T kStep = sizeof(T) == 4 ? T{0x1p-24} : T{0x1p-32};  // so that u is in (0, 1]
    for (int i = 0; i < 4; i += 2) {
      const T radius = std::sqrt(-2 * std::log(uniform<T>(words.word[i]) + kStep));
      T sin, cos;
      sin_cos_pi(2 * uniform<T>(words.word[i + 1]), &sin, &cos);
      value[i] = radius * cos;
      value[i + 1] = radius * sin;
    }
  }
};

template <class T, class Distribution>
struct Draw {
  Distribution distribution;
  RandomPosition position;
  T* out;
  int64_t n;
  __device__ void operator()(int64_t block) const {
    T value[4];
    distribution(Words(position, position.offset / 4 + static_cast<uint64_t>(block)), value);
    for (int i = 0; i < 4 && 4 * block + i < n; ++i) out[4 * block + i] = value[i];
  }
};

template <class Distribution>
void draw(const Distribution& distribution, const RandomPosition& position, const View& out) {
  for_float(out.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_for_each(ceil_div<int64_t>(out.numel(), 4),
                    Draw<T, Distribution>{distribution, position, out.as<T>(), out.numel()});
  });
}

/// Kept where the float32 uniform is at least p: decided on the integers, as on the CPU.
template <class T>
struct Dropout {
  const T* x;
  T* out;
  RandomPosition position;
  int64_t n;
  uint32_t threshold;
  Computed<T> scale;
  __device__ void operator()(int64_t block) const {
    const Words words(position, position.offset / 4 + static_cast<uint64_t>(block));
    for (int i = 0; i < 4 && 4 * block + i < n; ++i) {
      const bool kept = words.word[i] >> 8 >= threshold;
      out[4 * block + i] = stored<T>(kept ? number(x[4 * block + i]) * scale : Computed<T>{0});
    }
  }
};

}  // namespace

void CudaBackend::fill_uniform(RandomPosition position, View out) {
  draw(Uniform{}, position, out);
}

void CudaBackend::fill_normal(RandomPosition position, View out) { draw(Normal{}, position, out); }

void CudaBackend::dropout(ConstView x, double p, RandomPosition position, View out) {
  for_stored(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_for_each(ceil_div<int64_t>(x.numel(), 4),
                    Dropout<T>{x.as<T>(), out.as<T>(), position, x.numel(),
                               static_cast<uint32_t>(std::ceil(p * 0x1p24)),
                               static_cast<Computed<T>>(1 / (1 - p))});
  });
}

}  // namespace mutilde::cuda
