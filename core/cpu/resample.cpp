// Resampling of images, [N, H, W, C]. Work is shared out by rows of the coarser image.
#include <cmath>
#include <cstring>
#include <vector>

#include "core/cpu/cpu_backend.h"
#include "core/cpu/parallel.h"

namespace mutilde {
namespace {

/// A sample between two entries of an axis: (1 - weight) * x[low] + weight * x[high].
struct Sample {
  int64_t low, high;
  double weight;
};

/// Half-pixel centres: sample i of `to` lies at (i + 1/2) * from / to - 1/2, clamped to the image.
std::vector<Sample> samples(int64_t from, int64_t to) {
  std::vector<Sample> result(static_cast<size_t>(to));
  for (int64_t i = 0; i < to; ++i) {
    const double centre =
        (static_cast<double>(i) + 0.5) * static_cast<double>(from) / static_cast<double>(to) - 0.5;
    const double position = std::max(centre, 0.0);
    const int64_t low = std::min(static_cast<int64_t>(position), from - 1);
    const int64_t high = std::min(low + 1, from - 1);
    result[static_cast<size_t>(i)] = {low, high, position - static_cast<double>(low)};
  }
  return result;
}

}  // namespace

void CpuBackend::upsample_nearest(ConstView x, int64_t factor, double scale, View out) {
  const int64_t rows = x.shape[0] * x.shape[1], W = x.shape[2], C = x.shape[3];
  const int64_t out_row = W * factor * C;
  if (out.numel() == 0) return;
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T factor_of_x = static_cast<T>(scale);
    parallel_for(rows, kGrain / (out_row * factor) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* from = x.as<T>() + row * W * C;
        T* to = out.as<T>() + row * factor * out_row;
        for (int64_t w = 0; w < W * factor; ++w) {
          const T* pixel = from + w / factor * C;
          for (int64_t c = 0; c < C; ++c) to[w * C + c] = factor_of_x * pixel[c];
        }
        for (int64_t copy = 1; copy < factor; ++copy) {
          std::memcpy(to + copy * out_row, to, static_cast<size_t>(out_row) * sizeof(T));
        }
      }
    });
  });
}

void CpuBackend::sum_pool(ConstView x, int64_t factor, double scale, View out) {
  const int64_t rows = out.shape[0] * out.shape[1], W = out.shape[2], C = out.shape[3];
  const int64_t x_row = W * factor * C;
  if (out.numel() == 0) return;
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T factor_of_sum = static_cast<T>(scale);
    parallel_for(rows, kGrain / (x_row * factor) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t w = 0; w < W; ++w) {
          const T* block = x.as<T>() + row * factor * x_row + w * factor * C;
          T* sum = out.as<T>() + (row * W + w) * C;
          std::fill(sum, sum + C, T{0});
          for (int64_t i = 0; i < factor; ++i) {
            for (int64_t j = 0; j < factor; ++j) {
              const T* pixel = block + i * x_row + j * C;
              for (int64_t c = 0; c < C; ++c) sum[c] += pixel[c];
            }
          }
          for (int64_t c = 0; c < C; ++c) sum[c] *= factor_of_sum;
        }
      }
    });
  });
}

void CpuBackend::resize_bilinear(ConstView x, View out) {
  const int64_t H = x.shape[1], W = x.shape[2], C = x.shape[3];
  const int64_t N = out.shape[0], H_out = out.shape[1], W_out = out.shape[2];
  if (out.numel() == 0) return;
  const std::vector<Sample> vertical = samples(H, H_out), horizontal = samples(W, W_out);
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallel_for(N * H_out, kGrain / (4 * W_out * C) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t n = row / H_out;
        const Sample& v = vertical[static_cast<size_t>(row % H_out)];
        const T* low_row = x.as<T>() + (n * H + v.low) * W * C;
        const T* high_row = x.as<T>() + (n * H + v.high) * W * C;
        const T down = static_cast<T>(v.weight);
        for (int64_t w = 0; w < W_out; ++w) {
          const Sample& h = horizontal[static_cast<size_t>(w)];
          const T right = static_cast<T>(h.weight);
          const T *a = low_row + h.low * C, *b = low_row + h.high * C;
          const T *c = high_row + h.low * C, *d = high_row + h.high * C;
          T* to = out.as<T>() + (row * W_out + w) * C;
          for (int64_t i = 0; i < C; ++i) {
            const T top = (1 - right) * a[i] + right * b[i];
            const T bottom = (1 - right) * c[i] + right * d[i];
            to[i] = (1 - down) * top + down * bottom;
          }
        }
      }
    });
  });
}

// The transpose of the above: each output pixel hands its gradient to the four that it was made
// from. Output rows overlap in dx, so only whole images go to different threads.
void CpuBackend::resize_bilinear_backward(ConstView dout, View dx) {
  const int64_t N = dx.shape[0], H = dx.shape[1], W = dx.shape[2], C = dx.shape[3];
  const int64_t H_out = dout.shape[1], W_out = dout.shape[2];
  if (dx.numel() == 0) return;
  const std::vector<Sample> vertical = samples(H, H_out), horizontal = samples(W, W_out);
  for_float(dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallel_tasks(N, [&](int64_t n) {
      T* image = dx.as<T>() + n * H * W * C;
      const T* from = dout.as<T>() + n * H_out * W_out * C;
      std::fill(image, image + H * W * C, T{0});
      const auto add = [&](int64_t h, int64_t w, double weight, const T* pixel) {
        T* to = image + (h * W + w) * C;
        for (int64_t i = 0; i < C; ++i) to[i] += static_cast<T>(weight) * pixel[i];
      };
      for (const Sample& v : vertical) {
        for (const Sample& h : horizontal) {
          add(v.low, h.low, (1 - v.weight) * (1 - h.weight), from);
          add(v.low, h.high, (1 - v.weight) * h.weight, from);
          add(v.high, h.low, v.weight * (1 - h.weight), from);
          add(v.high, h.high, v.weight * h.weight, from);
          from += C;
        }
      }
    });
  });
}

}  // namespace mutilde
