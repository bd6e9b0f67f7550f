// The convolution of factors in a short type and its two gradients, by the rung that is asked for: conv_mma.h or
// hopper/hopper.h, whose arguments these are.
#pragma once

#include "cuda/conv_mma.h"
#include "cuda/hopper/hopper.h"
#include "cuda/product.h"
#include "cuda/rung.h"

namespace mutilde::cuda {

template <class E, class Out>
void conv2d_short(Rung rung, const ConvSizes& s, int N, const E* x, const E* weight,
                  const float* bias, const Out* residual, Out* out) {
  const auto conv = rung == Rung::kHopper ? conv2d_wgmma<E, Out> : conv2d_mma<E, Out>;
  conv(s, N, x, weight, bias, residual, out, nullptr);
}

template <class E, class Out>
void conv2d_backward_input_short(Rung rung, const ConvSizes& s, int N, const E* dout,
                                 const E* weight, Out* dx) {
  const auto backward = rung == Rung::kHopper ? conv2d_backward_input_wgmma<E, Out>
                                              : conv2d_backward_input_mma<E, Out>;
  backward(s, N, dout, weight, dx, nullptr);
}

/// dweight: the sum of the parts.
template <class E>
void conv2d_backward_weight_short(Backend& backend, Rung rung, const ConvSizes& s, int N,
                                  const E* x, const E* dout, float* dweight) {
  const bool hopper = rung == Rung::kHopper;
  const int chunks =
      hopper ? conv2d_backward_weight_chunks(s, N) : conv2d_backward_weight_mma_chunks(s, N);
  const auto backward = hopper ? conv2d_backward_weight_wgmma<E> : conv2d_backward_weight_mma<E>;
  sum_chunks(backend, chunks, int64_t{s.C_out} * s.kH * s.kW * s.C, dweight,
             [&](float* partial) { backward(s, N, x, dout, partial, nullptr); });
}

}  // namespace mutilde::cuda
