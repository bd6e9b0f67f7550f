// Convolution and its two gradients, each as one matrix product (tile_product.h).
//
//                   rows            columns         k                 a             b
//   forward         output pixels   C_out           kh, kw, c         patches of x  weight
//   input gradient  input pixels    C               kh, kw, c_out     dout          weight
//   weight gradient C_out           kh, kw, c       output pixels     dout          patches of x
//
// The patches of x, a row of kH kW C numbers for each output pixel, would be kH kW times as large as
// x. They are never written: the product asks for one of their elements, and gets it from x, or a
// zero of the padding. Channels are last, so a row consists of runs of C neighbours.
#include "cuda/cuda_backend.h"
#include "cuda/tile_product.h"

namespace mutilde::cuda {
namespace {

struct ConvSizes {
  int H, W, C, H_out, W_out, C_out, kH, kW, stride, padding;
};

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

/// Element (pixel of the output, (kh, kw, c)): what the weight at (kh, kw, c) is multiplied with.
template <class T>
struct Patches {
  static constexpr bool kAlongK = true;
  const T* x;
  ConvSizes s;
  __device__ T operator()(int, int pixel, int k) const {
    const int w_out = pixel % s.W_out, h_out = pixel / s.W_out % s.H_out;
    const int n = pixel / s.W_out / s.H_out;
    const int c = k % s.C, kw = k / s.C % s.kW, kh = k / s.C / s.kW;
    const int h = h_out * s.stride - s.padding + kh, w = w_out * s.stride - s.padding + kw;
    if (h < 0 || h >= s.H || w < 0 || w >= s.W) return 0;
    return x[((int64_t{n} * s.H + h) * s.W + w) * s.C + c];
  }
};

/// The same with the pixels as k.
template <class T>
struct PatchesTransposed {
  static constexpr bool kAlongK = false;
  Patches<T> patches;
  __device__ T operator()(int batch, int outer, int pixel) const {
    return patches(batch, pixel, outer);
  }
};

/// Element (pixel of the input, (kh, kw, c_out)): the gradient of the output that the weight at
/// (kh, kw) made from this pixel, if there is one: not each pixel meets each weight where the
/// stride is over 1.
template <class T>
struct GradientPatches {
  static constexpr bool kAlongK = true;
  const T* dout;
  ConvSizes s;
  __device__ T operator()(int, int pixel, int k) const {
    const int w = pixel % s.W, h = pixel / s.W % s.H, n = pixel / s.W / s.H;
    const int c_out = k % s.C_out, kw = k / s.C_out % s.kW, kh = k / s.C_out / s.kW;
    const int h_from = h + s.padding - kh, w_from = w + s.padding - kw;
    if (h_from < 0 || w_from < 0 || h_from % s.stride != 0 || w_from % s.stride != 0) return 0;
    const int h_out = h_from / s.stride, w_out = w_from / s.stride;
    if (h_out >= s.H_out || w_out >= s.W_out) return 0;
    return dout[((int64_t{n} * s.H_out + h_out) * s.W_out + w_out) * s.C_out + c_out];
  }
};

/// Element (c, (kh, kw, c_out)) of weight: [C_out, kH, kW, C].
template <class T>
struct WeightByInput {
  static constexpr bool kAlongK = false;
  const T* weight;
  ConvSizes s;
  __device__ T operator()(int, int c, int k) const {
    return weight[(int64_t{k % s.C_out} * s.kH * s.kW + k / s.C_out) * s.C + c];
  }
};

}  // namespace

void CudaBackend::conv2d(ConstView x, ConstView weight, ConstView bias, Conv2dGeometry geometry,
                         View out) {
  const ConvSizes s = conv_sizes(x.shape, weight.shape, out.shape, geometry);
  const int64_t pixels = out.shape.product(0, 3), K = weight.shape.product(1, 4);
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    batched_product("conv2d", 1, pixels, s.C_out, K, Patches<T>{x.as<T>(), s},
                    Matrix<T, true>{weight.as<T>(), K, 0},
                    Store<T>{out.as<T>(), pixels, s.C_out, bias.as<T>()});
  });
}

void CudaBackend::conv2d_backward_input(ConstView dout, ConstView weight, Conv2dGeometry geometry,
                                        View dx) {
  const ConvSizes s = conv_sizes(dx.shape, weight.shape, dout.shape, geometry);
  const int64_t pixels = dx.shape.product(0, 3), K = weight.shape.product(0, 3);
  for_float(dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    batched_product("conv2d", 1, pixels, s.C, K, GradientPatches<T>{dout.as<T>(), s},
                    WeightByInput<T>{weight.as<T>(), s},
                    Store<T>{dx.as<T>(), pixels, s.C, nullptr});
  });
}

void CudaBackend::conv2d_backward_weight(ConstView x, ConstView dout, Conv2dGeometry geometry,
                                         View dweight) {
  const ConvSizes s = conv_sizes(x.shape, dweight.shape, dout.shape, geometry);
  const int64_t pixels = dout.shape.product(0, 3), columns = dweight.shape.product(1, 4);
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    long_product(*this, "conv2d", s.C_out, columns, pixels,
                 Matrix<T, false>{dout.as<T>(), s.C_out, 0}, PatchesTransposed<T>{{x.as<T>(), s}},
                 dweight.as<T>());
  });
}

}  // namespace mutilde::cuda
