// The direct sums behind the backend's convolutions, for any kernel, stride and padding; views as
// in core/backend.h. Tests and benchmarks hold Winograd's way against them.
#pragma once

#include "core/backend.h"

namespace mutilde {

void conv2d_direct(ConstView x, ConstView weight, ConstView bias, Conv2dGeometry geometry,
                   View out);
void conv2d_direct_backward_input(ConstView dout, ConstView weight, Conv2dGeometry geometry,
                                  View dx);
void conv2d_direct_backward_weight(ConstView x, ConstView dout, Conv2dGeometry geometry,
                                   View dweight);

}  // namespace mutilde
