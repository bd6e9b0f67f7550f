// The direct sums behind the backend's convolutions, for any kernel, stride and padding; views as
// in core/backend.h. Tests and benchmarks hold Winograd's way against them.
#pragma once

#include "core/backend.h"

namespace mutilde {

/// The sizes of one convolution.
struct ConvShape {
  int64_t N, H, W, C, C_out, kH, kW, H_out, W_out, stride, padding, padding_w;

  ConvShape(const Shape& x, const Shape& weight, const Shape& out, Conv2dGeometry geometry)
      : N(x[0]),
        H(x[1]),
        W(x[2]),
        C(x[3]),
        C_out(weight[0]),
        kH(weight[1]),
        kW(weight[2]),
        H_out(out[1]),
        W_out(out[2]),
        stride(geometry.stride),
        padding(geometry.padding),
        padding_w(geometry.padding) {}
  bool is_product() const { return kH == 1 && kW == 1 && stride == 1 && padding == 0; }
};

void conv2d_direct(ConstView x, ConstView weight, ConstView bias, Conv2dGeometry geometry,
                   View out);
void conv2d_direct_backward_input(ConstView dout, ConstView weight, Conv2dGeometry geometry,
                                  View dx);
void conv2d_direct_backward_weight(ConstView x, ConstView dout, Conv2dGeometry geometry,
                                   View dweight);

}  // namespace mutilde
