// The factors of a convolution and of its gradients as matrices (conv.cu has the table): functions of an outer index
// and of k, as product.h wants them. address() is where the element lies, or null where it is a zero; base() is any
// address in the array.
#pragma once

#include "cuda/conv_plain.h"
#include "cuda/parallel.h"

namespace mutilde::cuda {

template <class T>
__device__ Computed<T> number_at(const T* address) {
  return address == nullptr ? Computed<T>{0} : number(*address);
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

  __device__ const T* base() const { return x; }
  using Outer = Window<T>;
  __device__ Window<T> outer(int, int pixel) const {
    const int w = pixel % s.W_out, h = pixel / s.W_out % s.H_out, n = pixel / s.W_out / s.H_out;
    return {x + int64_t{n} * s.H * s.W * s.C, h * s.stride - s.padding, w * s.stride - s.padding};
  }
  __device__ Tap inner(int k) const { return {k, s.kW, s.C}; }
  __device__ const T* address(const Window<T>& window, const Tap& tap) const {
    const int h = window.h + tap.kh, w = window.w + tap.kw;
    if (h < 0 || h >= s.H || w < 0 || w >= s.W) return nullptr;
    return window.image + (int64_t{h} * s.W + w) * s.C + tap.c;
  }
  __device__ Computed<T> at(const Window<T>& window, const Tap& tap) const {
    return number_at(address(window, tap));
  }
};

/// The same with the pixels as k.
template <class T>
struct PatchesTransposed {
  static constexpr bool kAlongK = false;
  using Element = T;
  Patches<T> patches;

  __device__ const T* base() const { return patches.x; }
  using Outer = Tap;
  __device__ Tap outer(int, int k) const { return patches.inner(k); }
  __device__ Window<T> inner(int pixel) const { return patches.outer(0, pixel); }
  __device__ const T* address(const Tap& tap, const Window<T>& window) const {
    return patches.address(window, tap);
  }
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

  __device__ const T* base() const { return dout; }
  using Outer = Window<T>;
  __device__ Window<T> outer(int, int pixel) const {
    const int w = pixel % s.W, h = pixel / s.W % s.H, n = pixel / s.W / s.H;
    return {dout + int64_t{n} * s.H_out * s.W_out * s.C_out, h + s.padding, w + s.padding};
  }
  __device__ Tap inner(int k) const { return {k, s.kW, s.C_out}; }
  __device__ const T* address(const Window<T>& window, const Tap& tap) const {
    int h = window.h - tap.kh, w = window.w - tap.kw;
    if (h < 0 || w < 0) return nullptr;
    if (s.stride != 1) {  // a GPU divides slowly
      if (h % s.stride != 0 || w % s.stride != 0) return nullptr;
      h /= s.stride;
      w /= s.stride;
    }
    if (h >= s.H_out || w >= s.W_out) return nullptr;
    return window.image + (int64_t{h} * s.W_out + w) * s.C_out + tap.c;
  }
  __device__ Computed<T> at(const Window<T>& window, const Tap& tap) const {
    return number_at(address(window, tap));
  }
};

/// Element (c, tap of an output channel) of weight: [C_out, kH, kW, C].
template <class T>
struct WeightByInput {
  static constexpr bool kAlongK = false;
  using Element = T;
  const T* weight;
  ConvSizes s;

  __device__ const T* base() const { return weight; }
  using Outer = int;
  __device__ int outer(int, int c) const { return c; }
  __device__ int64_t inner(int k) const {
    return (int64_t{k % s.C_out} * s.kH * s.kW + k / s.C_out) * s.C;
  }
  __device__ const T* address(int c, int64_t inner) const { return weight + inner + c; }
  __device__ Computed<T> at(int c, int64_t inner) const { return number_at(address(c, inner)); }
};

}  // namespace mutilde::cuda
