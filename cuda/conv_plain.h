// Rung 1 of the convolution and its gradients. All arrays are dense, on the device, channels last.
#pragma once

#include <cstdint>

#include "cuda/parallel.h"

namespace mutilde::cuda {

struct ConvSizes {
  int H, W, C, H_out, W_out, C_out, kH, kW, stride, padding;
};

/// x: [N, H, W, C], weight: [C_out, kH, kW, C], bias: [C_out] or null; out: `pixels` = N H_out W_out
/// rows of C_out. T is float, double, __nv_bfloat16 or __half, here and below.
template <class T>
void conv2d_plain(const ConvSizes& s, const T* x, const Computed<T>* weight,
                  const Computed<T>* bias, T* out, int64_t pixels);

/// dx: `pixels` = N H W rows of C.
template <class T>
void conv2d_plain_backward_input(const ConvSizes& s, const T* dout, const Computed<T>* weight,
                                 T* dx, int64_t pixels);

/// dweight: like weight, from `pixels` = N H_out W_out rows of dout.
template <class T>
void conv2d_plain_backward_weight(const ConvSizes& s, const T* x, const T* dout,
                                  Computed<T>* dweight, int64_t pixels);

}  // namespace mutilde::cuda
