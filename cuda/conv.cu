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
#include "cuda/conv_operands.h"
#include "cuda/conv_plain.h"
#include "cuda/conv_short.h"
#include "cuda/cuda_backend.h"
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
      if (multiplies_short(way.rung) && !is_empty(s, N) && conv2d_wgmma_takes(p, sizeof(T) == 2)) {
        const bool adds = is_aligned(residual.data, 16);
        for_factors<T>(way, [&](auto zero_factor) {
          using E = decltype(zero_factor);
          const Shortened<E> short_x(*this, x, int64_t{N} * s.H * s.W, p.C);
          const Shortened<E> short_weight(*this, weight, int64_t{s.C_out} * s.kH * s.kW, p.C);
          conv2d_short(way.rung, p, N, short_x.data(), short_weight.data(), bias.as<float>(),
                       adds ? residual.as<T>() : nullptr, out.as<T>());
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
      if (multiplies_short(way.rung) && !is_empty(s, N) && conv2d_backward_wgmma_takes(p)) {
        return for_factors<T>(way, [&](auto zero_factor) {
          using E = decltype(zero_factor);
          const Shortened<E> short_dout(*this, dout, int64_t{N} * s.H_out * s.W_out, p.C_out);
          const Shortened<E> short_weight(*this, weight, int64_t{p.C_out} * s.kH * s.kW, s.C);
          conv2d_backward_input_short(way.rung, p, N, short_dout.data(), short_weight.data(),
                                      dx.as<T>());
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
  if (multiplies_short(way.rung) && !is_empty(s, N) && conv2d_backward_wgmma_takes(p)) {
    const int64_t weights = int64_t{p.C_out} * s.kH * s.kW * p.C;
    const auto compute = [&](float* out) {
      for_short(way.factors, [&](auto zero) {
        using E = decltype(zero);
        const Shortened<E> short_x(*this, x, int64_t{N} * s.H * s.W, p.C);
        const Shortened<E> short_dout(*this, dout, pixels, p.C_out);
        conv2d_backward_weight_short(*this, way.rung, p, N, short_x.data(), short_dout.data(), out);
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
