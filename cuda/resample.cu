// Resampling of images, [N, H, W, C]: a thread an element of what is written, channels along the
// threads of a warp. Backward passes gather too: an input pixel asks which output pixels it went
// into, so that no two threads add to one number, and the sum is the same every time.
#include <cmath>
#include <type_traits>

#include "cuda/cuda_backend.h"
#include "cuda/parallel.h"

namespace mutilde::cuda {
namespace {

/// The index of an element of [N, H, W, C].
struct Pixel {
  int64_t n, h, w, c;
  __device__ Pixel(int64_t i, int64_t H, int64_t W, int64_t C)
      : n(i / C / W / H), h(i / C / W % H), w(i / C % W), c(i % C) {}
};

/// Of packs of channels: C and i count those.
template <class T, int width>
struct UpsampleNearest {
  const Pack<T, width>* x;
  Pack<T, width>* out;
  int64_t H, W, C, factor;  // of x
  Computed<T> scale;
  __device__ void operator()(int64_t i) const {
    const Pixel at(i, H * factor, W * factor, C);
    auto pack = x[((at.n * H + at.h / factor) * W + at.w / factor) * C + at.c];
    for (T& one : pack.at) one = stored<T>(scale * number(one));
    out[i] = pack;
  }
};

template <class T, int width>
struct SumPool {
  const Pack<T, width>* x;
  Pack<T, width>* out;
  int64_t H, W, C, factor;  // of out
  Computed<T> scale;
  __device__ void operator()(int64_t i) const {
    const Pixel at(i, H, W, C);
    const Pack<T, width>* block = x + ((at.n * H + at.h) * factor * W + at.w) * factor * C + at.c;
    Computed<T> sum[width] = {};
    for (int64_t row = 0; row < factor; ++row) {
      for (int64_t column = 0; column < factor; ++column) {
        const auto pack = block[(row * W * factor + column) * C];
        for (int j = 0; j < width; ++j) sum[j] += number(pack.at[j]);
      }
    }
    Pack<T, width> result;
    for (int j = 0; j < width; ++j) result.at[j] = stored<T>(scale * sum[j]);
    out[i] = result;
  }
};

/// A sample between two entries of an axis: (1 - weight) * x[low] + weight * x[high].
struct Sample {
  int64_t low, high;
  double weight;
  /// Half-pixel centres: sample i of `to` lies at (i + 1/2) * from / to - 1/2, clamped to the image.
  __device__ Sample(int64_t i, int64_t from, int64_t to) {
    const double centre =
        (static_cast<double>(i) + 0.5) * static_cast<double>(from) / static_cast<double>(to) - 0.5;
    const double position = max(centre, 0.0);
    low = min(static_cast<int64_t>(position), from - 1);
    high = min(low + 1, from - 1);
    weight = position - static_cast<double>(low);
  }
  /// Of entry h in this sample.
  __device__ double weight_of(int64_t h) const {
    return (h == low ? 1 - weight : 0) + (h == high ? weight : 0);
  }
};

template <class T>
struct ResizeBilinear {
  const T* x;
  T* out;
  int64_t H, W, H_out, W_out, C;
  __device__ void operator()(int64_t i) const {
    const Pixel at(i, H_out, W_out, C);
    const Sample v(at.h, H, H_out), h(at.w, W, W_out);
    const T down = static_cast<T>(v.weight), right = static_cast<T>(h.weight);
    const T* low_row = x + (at.n * H + v.low) * W * C + at.c;
    const T* high_row = x + (at.n * H + v.high) * W * C + at.c;
    const T top = (1 - right) * low_row[h.low * C] + right * low_row[h.high * C];
    const T bottom = (1 - right) * high_row[h.low * C] + right * high_row[h.high * C];
    out[i] = (1 - down) * top + down * bottom;
  }
};

/// The samples [begin, end) of an axis of which entry h may be a part: those that lie within 1 of it,
/// or beyond the edge at which it stands.
struct Reach {
  int64_t begin, end;
  __device__ Reach(int64_t h, int64_t from, int64_t to) {
    const double step = static_cast<double>(to) / static_cast<double>(from);
    const auto sample_at = [&](double position) { return (position + 0.5) * step - 0.5; };
    const double before = sample_at(static_cast<double>(h - 1));
    const double behind = sample_at(static_cast<double>(h + 1));
    begin = h == 0 ? 0 : max(static_cast<int64_t>(before), int64_t{0});
    end = h == from - 1 ? to : min(static_cast<int64_t>(max(behind, 0.0)) + 2, to);
  }
};

template <class T>
struct ResizeBilinearBackward {
  const T* dout;
  T* dx;
  int64_t H, W, H_out, W_out, C;
  __device__ void operator()(int64_t i) const {
    const Pixel at(i, H, W, C);
    const Reach rows(at.h, H, H_out), columns(at.w, W, W_out);
    T sum = 0;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const double down = Sample(row, H, H_out).weight_of(at.h);
      if (down == 0) continue;
      const T* dout_row = dout + (at.n * H_out + row) * W_out * C + at.c;
      for (int64_t column = columns.begin; column < columns.end; ++column) {
        const double weight = down * Sample(column, W, W_out).weight_of(at.w);
        sum += static_cast<T>(weight) * dout_row[column * C];
      }
    }
    dx[i] = sum;
  }
};

/// F of packs of 16 bytes where the channels of x and out are such, else of single ones; `small` has the sizes.
template <template <class, int> class F>
void launch_resample(const ConstView& x, const View& out, const Shape& small, int64_t factor,
                     double scale) {
  for_stored(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto of_width = [&]<int width>(std::integral_constant<int, width>) {
      launch_for_each(
          out.numel() / width,
          F<T, width>{x.as<Pack<T, width>>(), out.as<Pack<T, width>>(), small[1], small[2],
                      small[3] / width, factor, static_cast<Computed<T>>(scale)});
    };
    if (small[3] % kWidth<T> == 0 && are_aligned({x.data, out.data}))
      return of_width(std::integral_constant<int, kWidth<T>>{});
    of_width(std::integral_constant<int, 1>{});
  });
}

}  // namespace

void CudaBackend::upsample_nearest(ConstView x, int64_t factor, double scale, View out) {
  launch_resample<UpsampleNearest>(x, out, x.shape, factor, scale);
}

void CudaBackend::sum_pool(ConstView x, int64_t factor, double scale, View out) {
  launch_resample<SumPool>(x, out, out.shape, factor, scale);
}

void CudaBackend::resize_bilinear(ConstView x, View out) {
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_for_each(out.numel(), ResizeBilinear<T>{x.as<T>(), out.as<T>(), x.shape[1], x.shape[2],
                                                   out.shape[1], out.shape[2], out.shape[3]});
  });
}

void CudaBackend::resize_bilinear_backward(ConstView dout, View dx) {
  for_float(dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_for_each(dx.numel(),
                    ResizeBilinearBackward<T>{dout.as<T>(), dx.as<T>(), dx.shape[1], dx.shape[2],
                                              dout.shape[1], dout.shape[2], dx.shape[3]});
  });
}

}  // namespace mutilde::cuda
