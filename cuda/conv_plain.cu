// Rung 1 of the convolution and its two gradients: the definition, a thread a number of the result.
//
//   out[n, h, w, c_out] = bias[c_out] + sum over kh, kw, c of
//                         x[n, h stride + kh - padding, w stride + kw - padding, c]
//                         weight[c_out, kh, kw, c],                         x is 0 outside of the image
//
// The gradients are the same sum over the same triples of x, weight and out, seen from x and from
// weight: each thread walks over the triples that its number is part of.
//
// A number is read from memory again for each of the C_out or kH kW C results that it is part of, and
// a thread does one multiply-add for two loads. The next rung loads a tile once for 64 outputs. In the
// gradient of the weights, moreover, there are few results and each is a sum over all pixels: a small
// layer keeps a few hundred threads busy, of the 100,000 that a GPU has.
#include "cuda/conv_plain.h"
#include "cuda/parallel.h"

namespace mutilde::cuda {
namespace {

/// i counts out.
template <class T>
struct Forward {
  ConvSizes s;
  const T* x;
  const Computed<T>*weight, *bias;
  T* out;

  __device__ void operator()(int64_t i) const {
    const int c_out = i % s.C_out, w_out = i / s.C_out % s.W_out,
              h_out = i / s.C_out / s.W_out % s.H_out;
    const T* image = x + i / s.C_out / s.W_out / s.H_out * s.H * s.W * s.C;
    Computed<T> sum = 0;
    for (int kh = 0; kh < s.kH; ++kh) {
      for (int kw = 0; kw < s.kW; ++kw) {
        const int h = h_out * s.stride + kh - s.padding, w = w_out * s.stride + kw - s.padding;
        if (h < 0 || h >= s.H || w < 0 || w >= s.W) continue;
        const T* pixel = image + (int64_t{h} * s.W + w) * s.C;
        const Computed<T>* tap = weight + ((int64_t{c_out} * s.kH + kh) * s.kW + kw) * s.C;
        for (int c = 0; c < s.C; ++c) sum += number(pixel[c]) * tap[c];
      }
    }
    out[i] = stored<T>(bias == nullptr ? sum : sum + bias[c_out]);
  }
};

/// i counts dx. The output pixel to which weight (kh, kw) carries this pixel is the h_out for which
/// h = h_out stride + kh - padding; with a stride over 1 there may be none.
template <class T>
struct BackwardInput {
  ConvSizes s;
  const T* dout;
  const Computed<T>* weight;
  T* dx;

  __device__ void operator()(int64_t i) const {
    const int c = i % s.C, w = i / s.C % s.W, h = i / s.C / s.W % s.H;
    const T* image = dout + i / s.C / s.W / s.H * s.H_out * s.W_out * s.C_out;
    Computed<T> sum = 0;
    for (int kh = 0; kh < s.kH; ++kh) {
      for (int kw = 0; kw < s.kW; ++kw) {
        const int h_up = h + s.padding - kh, w_up = w + s.padding - kw;
        if (h_up < 0 || w_up < 0 || h_up % s.stride != 0 || w_up % s.stride != 0) continue;
        const int h_out = h_up / s.stride, w_out = w_up / s.stride;
        if (h_out >= s.H_out || w_out >= s.W_out) continue;
        const T* pixel = image + (int64_t{h_out} * s.W_out + w_out) * s.C_out;
        for (int c_out = 0; c_out < s.C_out; ++c_out) {
          sum +=
              number(pixel[c_out]) * weight[((int64_t{c_out} * s.kH + kh) * s.kW + kw) * s.C + c];
        }
      }
    }
    dx[i] = stored<T>(sum);
  }
};

/// i counts dweight.
template <class T>
struct BackwardWeight {
  ConvSizes s;
  const T *x, *dout;
  Computed<T>* dweight;
  int64_t pixels;

  __device__ void operator()(int64_t i) const {
    const int c = i % s.C, kw = i / s.C % s.kW, kh = i / s.C / s.kW % s.kH;
    const int c_out = i / s.C / s.kW / s.kH;
    Computed<T> sum = 0;
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      const int64_t n = pixel / s.W_out / s.H_out;
      const int h = pixel / s.W_out % s.H_out * s.stride + kh - s.padding;
      const int w = pixel % s.W_out * s.stride + kw - s.padding;
      if (h < 0 || h >= s.H || w < 0 || w >= s.W) continue;
      sum += number(x[((n * s.H + h) * s.W + w) * s.C + c]) * number(dout[pixel * s.C_out + c_out]);
    }
    dweight[i] = sum;
  }
};

}  // namespace

template <class T>
void conv2d_plain(const ConvSizes& s, const T* x, const Computed<T>* weight,
                  const Computed<T>* bias, T* out, int64_t pixels) {
  launch_for_each(pixels * s.C_out, Forward<T>{s, x, weight, bias, out});
}

template <class T>
void conv2d_plain_backward_input(const ConvSizes& s, const T* dout, const Computed<T>* weight,
                                 T* dx, int64_t pixels) {
  launch_for_each(pixels * s.C, BackwardInput<T>{s, dout, weight, dx});
}

template <class T>
void conv2d_plain_backward_weight(const ConvSizes& s, const T* x, const T* dout,
                                  Computed<T>* dweight, int64_t pixels) {
  const int64_t weights = int64_t{s.C_out} * s.kH * s.kW * s.C;
  launch_for_each(weights, BackwardWeight<T>{s, x, dout, dweight, pixels});
}

// For each T that a tensor is stored as, with the S that is computed with.
#define MUTILDE_INSTANTIATE(T, S)                                                               \
  template void conv2d_plain(const ConvSizes&, const T*, const S*, const S*, T*, int64_t);      \
  template void conv2d_plain_backward_input(const ConvSizes&, const T*, const S*, T*, int64_t); \
  template void conv2d_plain_backward_weight(const ConvSizes&, const T*, const T*, S*, int64_t);
MUTILDE_INSTANTIATE(float, float)
MUTILDE_INSTANTIATE(double, double)
MUTILDE_INSTANTIATE(__nv_bfloat16, float)
MUTILDE_INSTANTIATE(__half, float)
#undef MUTILDE_INSTANTIATE

}  // namespace mutilde::cuda
