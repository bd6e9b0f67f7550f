// Convolution and its two gradients, each as one matrix product (product.h).
//
//                   rows            columns         k                 a             b
//   forward         output pixels   C_out           kh, kw, c         patches of x  weight
//   input gradient  input pixels    C               kh, kw, c_out     dout          weight
//   weight gradient C_out           kh, kw, c       output pixels     dout          patches of x
//
// The patches of x, a row of kH kW C numbers for each output pixel, would be kH kW times as large as
// x. They are never written: the product asks for one of their elements, and gets it from x, or a
// zero of the padding. Channels are last, so a row consists of runs of C neighbours.
//
// So a convolution climbs the ladder with the products, but for its plain rung: that is the
// definition as loops (conv_plain.cu), and what tests hold the others to.
#include "cuda/conv_plain.h"
#include "cuda/cuda_backend.h"
#include "cuda/hopper/hopper.h"
#include "cuda/product.h"

namespace mutilde::cuda {
namespace {

ConvSizes conv_sizes(const Shape& x, const Shape& weight, const Shape& out,
                     const Conv2dGeometry& geometry) {
  const auto size = [](int64_t n) { return int_size("conv2d", n); };
  return {size(x[1]),
          size(x[2]),
          size(x[3]),
          size(out[1]),
          size(out[2]),
          size(out[3]),
          size(weight[1]),
          size(weight[2]),
          size(geometry.stride),
          size(geometry.padding)};
}

/// Where a pixel's patch begins: its image, and its upper left corner.
template <class T>
struct Window {
  const T* image;
  int h, w;
};

/// One weight of a filter, by its number (kh kW + kw) channels + c.
struct Tap {
  int kh, kw, c;
  Tap() = default;
  __device__ Tap(int i, int kW, int channels)
      : kh(i / channels / kW), kw(i / channels % kW), c(i % channels) {}
};

/// Element (pixel of the output, tap): what that weight is multiplied with.
template <class T>
struct Patches {
  static constexpr bool kAlongK = true;
  using Element = T;
  const T* x;
  ConvSizes s;

  using Outer = Window<T>;
  __device__ Window<T> outer(int, int pixel) const {
    const int w = pixel % s.W_out, h = pixel / s.W_out % s.H_out, n = pixel / s.W_out / s.H_out;
    return {x + int64_t{n} * s.H * s.W * s.C, h * s.stride - s.padding, w * s.stride - s.padding};
  }
  __device__ Tap inner(int k) const { return {k, s.kW, s.C}; }
  __device__ Computed<T> at(const Window<T>& window, const Tap& tap) const {
    const int h = window.h + tap.kh, w = window.w + tap.kw;
    if (h < 0 || h >= s.H || w < 0 || w >= s.W) return 0;
    return number(window.image[(int64_t{h} * s.W + w) * s.C + tap.c]);
  }
};

/// The same with the pixels as k.
template <class T>
struct PatchesTransposed {
  static constexpr bool kAlongK = false;
  Patches<T> patches;

  using Outer = Tap;
  __device__ Tap outer(int, int k) const { return patches.inner(k); }
  __device__ Window<T> inner(int pixel) const { return patches.outer(0, pixel); }
  __device__ Computed<T> at(const Tap& tap, const Window<T>& window) const {
    return patches.at(window, tap);
  }
};

/// Element (pixel of the input, tap of an output channel): the gradient of the output that the
/// weight made from this pixel, if there is one: not each pixel meets each weight where the stride
/// is over 1.
template <class T>
struct GradientPatches {
  static constexpr bool kAlongK = true;
  using Element = T;
  const T* dout;
  ConvSizes s;

  using Outer = Window<T>;
  __device__ Window<T> outer(int, int pixel) const {
    const int w = pixel % s.W, h = pixel / s.W % s.H, n = pixel / s.W / s.H;
    return {dout + int64_t{n} * s.H_out * s.W_out * s.C_out, h + s.padding, w + s.padding};
  }
  __device__ Tap inner(int k) const { return {k, s.kW, s.C_out}; }
  __device__ Computed<T> at(const Window<T>& window, const Tap& tap) const {
    const int h = window.h - tap.kh, w = window.w - tap.kw;
    if (h < 0 || w < 0 || h % s.stride != 0 || w % s.stride != 0) return 0;
    const int h_out = h / s.stride, w_out = w / s.stride;
    if (h_out >= s.H_out || w_out >= s.W_out) return 0;
    return number(window.image[(int64_t{h_out} * s.W_out + w_out) * s.C_out + tap.c]);
  }
};

/// Element (c, tap of an output channel) of weight: [C_out, kH, kW, C].
template <class T>
struct WeightByInput {
  static constexpr bool kAlongK = false;
  const T* weight;
  ConvSizes s;

  using Outer = int;
  __device__ int outer(int, int c) const { return c; }
  __device__ int64_t inner(int k) const {
    return (int64_t{k % s.C_out} * s.kH * s.kW + k / s.C_out) * s.C;
  }
  __device__ T at(int c, int64_t inner) const { return weight[inner + c]; }
};

/// Hopper's copy engine wants rows that are multiples of 16 bytes. Zeros make them so, of images (3 channels)
/// and of what becomes one again.
int padded(int channels) { return ceil_div(channels, 8) * 8; }

/// The gradient of the weight [C_out, taps, C] from that with padded channels. i counts it.
struct TakeChannels {
  const float* all;
  float* out;
  int C, padded;
  __device__ void operator()(int64_t i) const { out[i] = all[i / C * padded + i % C]; }
};

bool is_empty(const ConvSizes& s, int64_t N) {
  return N == 0 || s.H == 0 || s.W == 0 || s.H_out == 0 || s.W_out == 0;
}

}  // namespace

void CudaBackend::conv2d(ConstView x, ConstView weight, ConstView bias, ConstView residual,
                         Conv2dGeometry geometry, View out) {
  const ConvSizes s = conv_sizes(x.shape, weight.shape, out.shape, geometry);
  const int64_t pixels = out.shape.product(0, 3), K = weight.shape.product(1, 4);
  const int N = int_size("conv2d", x.shape[0]);
  const Way way = way_for(x.dtype, rung_);
  for_stored(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using Weight = Computed<T>;
    if constexpr (std::is_same_v<Weight, float>) {
      ConvSizes p = s;
      p.C = padded(s.C);
      if (way.rung == Rung::kHopper && !is_empty(s, N) && conv2d_wgmma_takes(p, sizeof(T) == 2)) {
        const bool adds = is_aligned(residual.data, 16);
        for_factors<T>(way, [&](auto zero_factor) {
          using E = decltype(zero_factor);
          const Shortened<E> short_x(*this, x, int64_t{N} * s.H * s.W, p.C);
          const Shortened<E> short_weight(*this, weight, int64_t{s.C_out} * s.kH * s.kW, p.C);
          conv2d_wgmma(p, N, short_x.data(), short_weight.data(), bias.as<float>(),
                       adds ? residual.as<T>() : nullptr, out.as<T>(), nullptr);
        });
        if (!adds) accumulate(residual, out);
        return;
      }
    }
    if (way.rung == Rung::kPlain) {
      conv2d_plain<T>(s, x.as<T>(), weight.as<Weight>(), bias.as<Weight>(), out.as<T>(), pixels);
    } else {
      batched_product(way, "conv2d", 1, pixels, s.C_out, K, Patches<T>{x.as<T>(), s},
                      Matrix<Weight, true>{weight.as<Weight>(), K, 0},
                      Store<T>{out.as<T>(), pixels, s.C_out, bias.as<Weight>()});
    }
    if (residual) accumulate(residual, out);
  });
}

void CudaBackend::conv2d_backward_input(ConstView dout, ConstView weight, Conv2dGeometry geometry,
                                        View dx) {
  const ConvSizes s = conv_sizes(dx.shape, weight.shape, dout.shape, geometry);
  const int64_t pixels = dx.shape.product(0, 3), K = weight.shape.product(0, 3);
  const int N = int_size("conv2d", dx.shape[0]);
  const Way way = way_for(dx.dtype, rung_);
  for_stored(dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    using Weight = Computed<T>;
    if constexpr (std::is_same_v<Weight, float>) {
      ConvSizes p = s;
      p.C_out = padded(s.C_out);
      if (way.rung == Rung::kHopper && !is_empty(s, N) && conv2d_backward_wgmma_takes(p)) {
        return for_factors<T>(way, [&](auto zero_factor) {
          using E = decltype(zero_factor);
          const Shortened<E> short_dout(*this, dout, int64_t{N} * s.H_out * s.W_out, p.C_out);
          const Shortened<E> short_weight(*this, weight, int64_t{p.C_out} * s.kH * s.kW, s.C);
          conv2d_backward_input_wgmma(p, N, short_dout.data(), short_weight.data(), dx.as<T>(),
                                      nullptr);
        });
      }
    }
    if (way.rung == Rung::kPlain) {
      return conv2d_plain_backward_input<T>(s, dout.as<T>(), weight.as<Weight>(), dx.as<T>(),
                                            pixels);
    }
    batched_product(way, "conv2d", 1, pixels, s.C, K, GradientPatches<T>{dout.as<T>(), s},
                    WeightByInput<Weight>{weight.as<Weight>(), s},
                    Store<T>{dx.as<T>(), pixels, s.C, nullptr});
  });
}

void CudaBackend::conv2d_backward_weight(ConstView x, ConstView dout, Conv2dGeometry geometry,
                                         View dweight) {
  const ConvSizes s = conv_sizes(x.shape, dweight.shape, dout.shape, geometry);
  const int64_t pixels = dout.shape.product(0, 3), columns = dweight.shape.product(1, 4);
  const int N = int_size("conv2d", x.shape[0]);
  const Way way = way_for(x.dtype, rung_);
  ConvSizes p = s;
  p.C = padded(s.C);
  p.C_out = padded(s.C_out);
  if (way.rung == Rung::kHopper && !is_empty(s, N) && conv2d_backward_wgmma_takes(p)) {
    const int64_t weights = int64_t{p.C_out} * s.kH * s.kW * p.C;
    const auto compute = [&](float* out) {
      for_short(way.factors, [&](auto zero) {
        using E = decltype(zero);
        const Shortened<E> short_x(*this, x, int64_t{N} * s.H * s.W, p.C);
        const Shortened<E> short_dout(*this, dout, pixels, p.C_out);
        sum_chunks(*this, conv2d_backward_weight_chunks(p, N), weights, out, [&](float* partial) {
          conv2d_backward_weight_wgmma(p, N, short_x.data(), short_dout.data(), partial, nullptr);
        });
      });
    };
    if (weights == dweight.numel()) return compute(dweight.as<float>());
    const Buffer<float> all(*this, weights);
    compute(all.data());
    return launch_for_each(dweight.numel(),
                           TakeChannels{all.data(), dweight.as<float>(), s.C, p.C});
  }
  for_stored(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using Weight = Computed<T>;
    if (way.rung == Rung::kPlain) {
      return conv2d_plain_backward_weight<T>(s, x.as<T>(), dout.as<T>(), dweight.as<Weight>(),
                                             pixels);
    }
    long_product(*this, way, "conv2d", s.C_out, columns, pixels,
                 Matrix<T, false>{dout.as<T>(), s.C_out, 0}, PatchesTransposed<T>{{x.as<T>(), s}},
                 dweight.as<Weight>());
  });
}

}  // namespace mutilde::cuda
