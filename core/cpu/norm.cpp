// Group norm with everything that follows it in a residual block, and softmax.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/cpu/cpu_backend.h"
#include "core/cpu/parallel.h"
#include "core/cpu/scratch.h"
#include "core/cpu/simd.h"

namespace mutilde {
namespace {

// ------------------------------------------------------------------------------------------------
// Group norm is limited by memory, not arithmetic, so what counts is how often the data comes by.
//
// Positions are taken in chunks of at most 128 and about 64 KB, which stay in L2: a chunk is read
// from memory once for its sum and, around the mean that this gives, its squared deviations (two
// passes, the second in L2). Chunks are merged in order, in double, by Chan's rule. Then comes the
// pass that writes. Rows of channels are contiguous: sums are kept for each channel, a vector of
// channels at a time and four positions at a time, and added up over a group's channels once a
// chunk.
//
// Forward: x is read twice, out written once. Backward: the first pass reads x and dout and leaves
// the gradient before scale and shift, du, in dx; from the sums of du and du * z over positions
// follow all other gradients; the second pass turns du into dx in place.
//
// An image is a task where images are enough for all threads, so that its second pass finds it in
// cache; otherwise the chunks are, in two loops. Chunks depend on the shape alone, and so do the
// results.
// ------------------------------------------------------------------------------------------------

constexpr int64_t kUnroll = 4;  // positions

struct NormShape {
  int64_t N, P, C, groups;
  int64_t group_channels, chunk, chunks, padded;  // padded: C up to whole vectors

  NormShape(const Shape& x, int64_t group_count, int64_t element_bytes)
      : N(x[0]), P(x[1]), C(x[2]), groups(group_count), group_channels(C / group_count) {
    chunk = std::clamp<int64_t>(65536 / std::max<int64_t>(C * element_bytes, 1), 16, 128);
    chunks = (P + chunk - 1) / chunk;
    padded = (C + 15) / 16 * 16;
  }
  int64_t chunk_begin(int64_t i) const { return i * chunk; }
  int64_t chunk_end(int64_t i) const { return std::min(P, (i + 1) * chunk); }
};

/// A vector of channels that is whole, or the last `count` of a row.
template <class T>
using Whole = std::integral_constant<int64_t, simd::kLanes<T>>;

template <class T>
simd::Vec<T> load_channels(const T* from, Whole<T>) {
  return simd::load(from);
}
template <class T>
simd::Vec<T> load_channels(const T* from, int64_t count) {
  return simd::load_partial(from, count);
}
template <class T>
void store_channels(T* to, simd::Vec<T> v, Whole<T>) {
  simd::store(to, v);
}
template <class T>
void store_channels(T* to, simd::Vec<T> v, int64_t count) {
  simd::store_partial(to, v, count);
}

/// Calls body(position, channel, lanes, unroll) for blocks of `unroll` positions (a constant, 4 or
/// 1) and one vector of channels that cover [begin, end) x [0, C).
template <class T, class Body>
void over_channels(int64_t begin, int64_t end, int64_t C, const Body& body) {
  const auto rows = [&](int64_t p, auto unroll) {
    int64_t c = 0;
    for (; c + simd::kLanes<T> <= C; c += simd::kLanes<T>) body(p, c, Whole<T>{}, unroll);
    if (c < C) body(p, c, C - c, unroll);
  };
  int64_t p = begin;
  for (; p + kUnroll <= end; p += kUnroll) rows(p, std::integral_constant<int64_t, kUnroll>{});
  for (; p < end; ++p) rows(p, std::integral_constant<int64_t, 1>{});
}

/// Tasks over images and chunks: first(n, chunk) for all chunks, then between(n), then last(n,
/// chunk).
template <class First, class Between, class Last>
void over_images(const NormShape& s, const First& first, const Between& between, const Last& last) {
  if (s.N >= thread_count()) {
    parallel_tasks(s.N, [&](int64_t n) {
      for (int64_t i = 0; i < s.chunks; ++i) first(n, i);
      between(n);
      for (int64_t i = 0; i < s.chunks; ++i) last(n, i);
    });
    return;
  }
  parallel_tasks(s.N * s.chunks, [&](int64_t i) { first(i / s.chunks, i % s.chunks); });
  for (int64_t n = 0; n < s.N; ++n) between(n);
  parallel_tasks(s.N * s.chunks, [&](int64_t i) { last(i / s.chunks, i % s.chunks); });
}

struct Moments {
  double count = 0, mean = 0, squares = 0;  // squares: the sum of squared deviations from the mean

  /// Chan, Golub and LeVeque: the moments of two sets together.
  void merge(const Moments& other) {
    const double total = count + other.count, delta = other.mean - mean;
    if (total == 0) return;
    mean += delta * other.count / total;
    squares += other.squares + delta * delta * count * other.count / total;
    count = total;
  }
};

/// The moments of each group over one chunk of an image, in two passes.
template <class T>
void chunk_moments(const NormShape& s, const T* image, int64_t begin, int64_t end,
                   Moments* moments) {
  using V = simd::Vec<T>;
  T* sums = scratch<T>(Scratch::kChannels, 3 * s.padded);
  T *centre = sums + s.padded, *squares = centre + s.padded;
  std::fill_n(sums, s.padded, T(0));
  over_channels<T>(begin, end, s.C, [&](int64_t p, int64_t c, auto lanes, auto unroll) {
    V sum = simd::load(sums + c);
    for (int64_t i = 0; i < unroll; ++i) sum += load_channels(image + (p + i) * s.C + c, lanes);
    simd::store(sums + c, sum);
  });
  const double count = static_cast<double>((end - begin) * s.group_channels);
  for (int64_t g = 0; g < s.groups; ++g) {
    double sum = 0;
    for (int64_t c = g * s.group_channels; c < (g + 1) * s.group_channels; ++c) sum += sums[c];
    std::fill_n(centre + g * s.group_channels, s.group_channels, static_cast<T>(sum / count));
  }
  std::fill_n(sums, s.padded, T(0));
  std::fill_n(squares, s.padded, T(0));
  over_channels<T>(begin, end, s.C, [&](int64_t p, int64_t c, auto lanes, auto unroll) {
    V sum = simd::load(sums + c), square = simd::load(squares + c);
    const V around = load_channels(centre + c, lanes);
    for (int64_t i = 0; i < unroll; ++i) {
      const V d = load_channels(image + (p + i) * s.C + c, lanes) - around;
      sum += d;
      square = simd::fma(d, d, square);
    }
    simd::store(sums + c, sum);
    simd::store(squares + c, square);
  });
  for (int64_t g = 0; g < s.groups; ++g) {
    double sum = 0, square = 0;  // sum is what rounding the centre to T left over
    for (int64_t c = g * s.group_channels; c < (g + 1) * s.group_channels; ++c) {
      sum += sums[c];
      square += squares[c];
    }
    moments[g] = {count, centre[g * s.group_channels] + sum / count, square - sum * sum / count};
  }
}

/// What the writing pass needs for each channel of an image: u = (x - mean) * gain + offset.
template <class T>
struct ChannelConstants {
  T *mean, *gain, *offset;
};

/// Defined by: v = z * weight + bias with z = (x - mean) * rstd, u = v * (1 + scale) + shift.
template <class T>
void fill_constants(const NormShape& s, const T* weight, const T* bias, const T* scale_shift,
                    const T* mean, const T* rstd, ChannelConstants<T> k) {
  for (int64_t c = 0; c < s.C; ++c) {
    const int64_t g = c / s.group_channels;
    const T scale = scale_shift != nullptr ? 1 + scale_shift[c] : T(1);
    const T shift = scale_shift != nullptr ? scale_shift[s.C + c] : T(0);
    k.mean[c] = mean[g];
    k.gain[c] = rstd[g] * weight[c] * scale;
    k.offset[c] = bias[c] * scale + shift;
  }
}

template <class T>
struct GroupNorm {
  NormShape s;
  GroupNormOptions options;
  const T *x, *weight, *bias, *scale_shift;

  const T* scale_shift_of(int64_t n) const {
    return scale_shift != nullptr ? scale_shift + n * 2 * s.C : nullptr;
  }
  const T* image(const T* data, int64_t n) const { return data + n * s.P * s.C; }
  T* image(T* data, int64_t n) const { return data + n * s.P * s.C; }
};

template <class T>
void run_group_norm(const GroupNorm<T>& norm, T* out, T* mean, T* rstd) {
  using V = simd::Vec<T>;
  const NormShape& s = norm.s;
  Moments* moments = scratch<Moments>(Scratch::kPartials, s.N * s.chunks * s.groups);
  T* constants = scratch<T>(Scratch::kGradients, s.N * 3 * s.padded);
  const auto constants_of = [&](int64_t n) {
    T* at = constants + n * 3 * s.padded;
    return ChannelConstants<T>{at, at + s.padded, at + 2 * s.padded};
  };
  const auto measure = [&](int64_t n, int64_t i) {
    chunk_moments(s, norm.image(norm.x, n), s.chunk_begin(i), s.chunk_end(i),
                  moments + (n * s.chunks + i) * s.groups);
  };
  const auto merge = [&](int64_t n) {
    for (int64_t g = 0; g < s.groups; ++g) {
      Moments all;
      for (int64_t i = 0; i < s.chunks; ++i) all.merge(moments[(n * s.chunks + i) * s.groups + g]);
      mean[n * s.groups + g] = static_cast<T>(all.mean);
      rstd[n * s.groups + g] = static_cast<T>(
          1 / std::sqrt(all.squares / std::max(all.count, 1.0) + norm.options.norm_eps));
    }
    fill_constants(s, norm.weight, norm.bias, norm.scale_shift_of(n), mean + n * s.groups,
                   rstd + n * s.groups, constants_of(n));
  };
  const auto apply = [&](int64_t n, int64_t chunk) {
    const ChannelConstants<T> k = constants_of(n);
    const T* from = norm.image(norm.x, n);
    T* to = norm.image(out, n);
    const auto write = [&](auto silu) {
      over_channels<T>(s.chunk_begin(chunk), s.chunk_end(chunk), s.C,
                       [&](int64_t p, int64_t c, auto lanes, auto unroll) {
                         const V centre = simd::load(k.mean + c), gain = simd::load(k.gain + c),
                                 offset = simd::load(k.offset + c);
                         for (int64_t i = 0; i < unroll; ++i) {
                           const int64_t at = (p + i) * s.C + c;
                           V u = simd::fma(load_channels(from + at, lanes) - centre, gain, offset);
                           if constexpr (silu) u *= simd::sigmoid(u);
                           store_channels(to + at, u, lanes);
                         }
                       });
    };
    norm.options.silu ? write(std::true_type{}) : write(std::false_type{});
  };
  over_images(s, measure, merge, apply);
}

/// With sums over the positions of an image, du being the gradient of u and z = (x - mean) * rstd:
///   dshift = sum du                     dscale = sum du * v = weight * sum du * z + bias * sum du
///   dbias = (1 + scale) * sum du        dweight = (1 + scale) * sum du * z
///   dz = du * weight * (1 + scale)
///   dx = rstd * (dz - mean of dz - z * mean of dz * z), means over the group
template <class T>
void run_group_norm_backward(const GroupNorm<T>& norm, const T* mean, const T* rstd, const T* dout,
                             T* dx, T* dweight, T* dbias, T* dscale_shift) {
  using V = simd::Vec<T>;
  const NormShape& s = norm.s;
  // For each chunk and channel: the sums of du and of du * (x - mean).
  T* sums = scratch<T>(Scratch::kPartials, s.N * s.chunks * 2 * s.padded);
  // For each image and channel: mean, gain, offset, and in the second pass dx = du * gain -
  // constant - (x - mean) * slope.
  T* constants = scratch<T>(Scratch::kGradients, s.N * 5 * s.padded);
  double* totals = scratch<double>(Scratch::kLogits, s.N * 2 * s.padded);
  const auto constants_of = [&](int64_t n) {
    T* at = constants + n * 5 * s.padded;
    return ChannelConstants<T>{at, at + s.padded, at + 2 * s.padded};
  };

  const auto first = [&](int64_t n, int64_t chunk) {
    const ChannelConstants<T> k = constants_of(n);
    const T *from = norm.image(norm.x, n), *gradient = norm.image(dout, n);
    T* to = norm.image(dx, n);
    T *du_sums = sums + (n * s.chunks + chunk) * 2 * s.padded, *du_x_sums = du_sums + s.padded;
    std::fill_n(du_sums, 2 * s.padded, T(0));
    const auto pass = [&](auto silu) {
      over_channels<T>(
          s.chunk_begin(chunk), s.chunk_end(chunk), s.C,
          [&](int64_t p, int64_t c, auto lanes, auto unroll) {
            const V centre = simd::load(k.mean + c), gain = simd::load(k.gain + c),
                    offset = simd::load(k.offset + c);
            V du_sum = simd::load(du_sums + c), du_x_sum = simd::load(du_x_sums + c);
            for (int64_t i = 0; i < unroll; ++i) {
              const int64_t at = (p + i) * s.C + c;
              const V d = load_channels(from + at, lanes) - centre;
              V du = load_channels(gradient + at, lanes);
              if constexpr (silu) {  // silu'(u) = sigmoid(u) * (1 + u * (1 - sigmoid(u)))
                const V u = simd::fma(d, gain, offset), sigmoid = simd::sigmoid(u);
                du *= sigmoid * (1 + u * (1 - sigmoid));
                store_channels(to + at, du, lanes);
              }
              du_sum += du;
              du_x_sum = simd::fma(du, d, du_x_sum);
            }
            simd::store(du_sums + c, du_sum);
            simd::store(du_x_sums + c, du_x_sum);
          });
    };
    norm.options.silu ? pass(std::true_type{}) : pass(std::false_type{});
  };

  const auto between = [&](int64_t n) {
    double *du = totals + n * 2 * s.padded, *du_z = du + s.padded;
    std::fill_n(du, 2 * s.padded, 0.0);
    for (int64_t i = 0; i < s.chunks; ++i) {
      const T* of_chunk = sums + (n * s.chunks + i) * 2 * s.padded;
      for (int64_t c = 0; c < s.C; ++c) {
        du[c] += of_chunk[c];
        du_z[c] += of_chunk[s.padded + c];
      }
    }
    T* constant = constants + (n * 5 + 3) * s.padded;
    T* slope = constant + s.padded;
    const T* scale_shift = norm.scale_shift_of(n);
    for (int64_t g = 0; g < s.groups; ++g) {
      const double r = rstd[n * s.groups + g];
      const double count = static_cast<double>(s.P * s.group_channels);
      double dz_sum = 0, dz_z_sum = 0;
      for (int64_t c = g * s.group_channels; c < (g + 1) * s.group_channels; ++c) {
        du_z[c] *= r;
        const double scale = scale_shift != nullptr ? 1.0 + scale_shift[c] : 1.0;
        dz_sum += du[c] * norm.weight[c] * scale;
        dz_z_sum += du_z[c] * norm.weight[c] * scale;
        if (scale_shift != nullptr) {
          T* d = dscale_shift + n * 2 * s.C;
          d[c] = static_cast<T>(norm.weight[c] * du_z[c] + norm.bias[c] * du[c]);
          d[s.C + c] = static_cast<T>(du[c]);
        }
        du[c] *= scale;  // from here on this image's part of dbias and dweight
        du_z[c] *= scale;
      }
      std::fill_n(constant + g * s.group_channels, s.group_channels,
                  static_cast<T>(r * dz_sum / count));
      std::fill_n(slope + g * s.group_channels, s.group_channels,
                  static_cast<T>(r * r * dz_z_sum / count));
    }
  };

  const auto last = [&](int64_t n, int64_t chunk) {
    const ChannelConstants<T> k = constants_of(n);
    const T *constants_n = constants + (n * 5 + 3) * s.padded, *slopes = constants_n + s.padded;
    const T* from = norm.image(norm.x, n);
    T* to = norm.image(dx, n);
    const T* du = norm.options.silu ? to : norm.image(dout, n);
    over_channels<T>(
        s.chunk_begin(chunk), s.chunk_end(chunk), s.C,
        [&](int64_t p, int64_t c, auto lanes, auto unroll) {
          const V centre = simd::load(k.mean + c), gain = simd::load(k.gain + c);
          const V constant = simd::load(constants_n + c), slope = simd::load(slopes + c);
          for (int64_t i = 0; i < unroll; ++i) {
            const int64_t at = (p + i) * s.C + c;
            const V d = load_channels(from + at, lanes) - centre;
            store_channels(to + at, load_channels(du + at, lanes) * gain - (d * slope + constant),
                           lanes);
          }
        });
  };

  for (int64_t n = 0; n < s.N; ++n) {
    fill_constants(s, norm.weight, norm.bias, norm.scale_shift_of(n), mean + n * s.groups,
                   rstd + n * s.groups, constants_of(n));
  }
  over_images(s, first, between, last);
  for (int64_t c = 0; c < s.C; ++c) {
    double weight_sum = 0, bias_sum = 0;
    for (int64_t n = 0; n < s.N; ++n) {
      bias_sum += totals[n * 2 * s.padded + c];
      weight_sum += totals[(n * 2 + 1) * s.padded + c];
    }
    dweight[c] = static_cast<T>(weight_sum);
    dbias[c] = static_cast<T>(bias_sum);
  }
}

}  // namespace

void CpuBackend::group_norm(ConstView x, ConstView weight, ConstView bias, ConstView scale_shift,
                            GroupNormOptions options, View out, View mean, View rstd) {
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const GroupNorm<T> norm{NormShape(x.shape, options.groups, sizeof(T)),
                            options,
                            x.as<T>(),
                            weight.as<T>(),
                            bias.as<T>(),
                            scale_shift.as<T>()};
    run_group_norm(norm, out.as<T>(), mean.as<T>(), rstd.as<T>());
  });
}

void CpuBackend::group_norm_backward(ConstView x, ConstView weight, ConstView bias,
                                     ConstView scale_shift, ConstView mean, ConstView rstd,
                                     GroupNormOptions options, ConstView dout, View dx,
                                     View dweight, View dbias, View dscale_shift) {
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const GroupNorm<T> norm{NormShape(x.shape, options.groups, sizeof(T)),
                            options,
                            x.as<T>(),
                            weight.as<T>(),
                            bias.as<T>(),
                            scale_shift.as<T>()};
    run_group_norm_backward(norm, mean.as<T>(), rstd.as<T>(), dout.as<T>(), dx.as<T>(),
                            dweight.as<T>(), dbias.as<T>(), dscale_shift.as<T>());
  });
}

// Softmax takes a row at a time: it is short enough to stay in cache.

void CpuBackend::softmax(ConstView x, View out) {
  const int64_t columns = x.shape[-1], rows = columns == 0 ? 0 : x.numel() / columns;
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using V = simd::Vec<T>;
    constexpr int64_t kLanes = simd::kLanes<T>;
    parallel_for(rows, kGrain / std::max<int64_t>(columns, 1) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* from = x.as<T>() + row * columns;
        T* to = out.as<T>() + row * columns;
        const T highest = *std::max_element(from, from + columns);
        V sums{};
        T sum = 0;
        int64_t j = 0;
        for (; j + kLanes <= columns; j += kLanes) {
          const V y = simd::exp(simd::load(from + j) - highest);
          sums += y;
          simd::store(to + j, y);
        }
        for (; j < columns; ++j) sum += to[j] = std::exp(from[j] - highest);
        const T factor = 1 / (sum + simd::horizontal_sum<T>(sums));
        for (j = 0; j < columns; ++j) to[j] *= factor;
      }
    });
  });
}

// dx = y * (dout - sum over the row of y * dout)
void CpuBackend::softmax_backward(ConstView y, ConstView dout, View dx) {
  const int64_t columns = y.shape[-1], rows = columns == 0 ? 0 : y.numel() / columns;
  for_float(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    using V = simd::Vec<T>;
    constexpr int64_t kLanes = simd::kLanes<T>;
    parallel_for(rows, kGrain / std::max<int64_t>(columns, 1) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T *weights = y.as<T>() + row * columns, *gradient = dout.as<T>() + row * columns;
        T* to = dx.as<T>() + row * columns;
        V sums{};
        T sum = 0;
        int64_t j = 0;
        for (; j + kLanes <= columns; j += kLanes) {
          sums = simd::fma(simd::load(weights + j), simd::load(gradient + j), sums);
        }
        for (; j < columns; ++j) sum += weights[j] * gradient[j];
        sum += simd::horizontal_sum<T>(sums);
        for (j = 0; j < columns; ++j) to[j] = weights[j] * (gradient[j] - sum);
      }
    });
  });
}

}  // namespace mutilde
