// Convolution.
#include "core/ops/check.h"
#include "core/ops/ops.h"

namespace mutilde {

namespace {

Shape conv2d_shape(const Tensor& x, const Tensor& weight, int64_t stride, int64_t padding) {
  if (x.size(3) != weight.size(3)) {
    fail<ShapeError>("conv2d: input has {} channels, weight expects {} (input {}, weight {})",
                     x.size(3), weight.size(3), x.shape(), weight.shape());
  }
  if (stride < 1 || padding < 0) {
    fail<ShapeError>("conv2d: stride {} and padding {} given, at least 1 and 0 are expected",
                     stride, padding);
  }
  constexpr int64_t kMostPadding = int64_t{1} << 40;  // so that no sum below overflows
  if (padding > kMostPadding || x.size(1) > kMostPadding || x.size(2) > kMostPadding) {
    fail<ShapeError>("conv2d: input {} with a padding of {} is too large", x.shape(), padding);
  }
  const int64_t room_h = x.size(1) + 2 * padding - weight.size(1);
  const int64_t room_w = x.size(2) + 2 * padding - weight.size(2);
  if (room_h < 0 || room_w < 0 || weight.size(1) < 1 || weight.size(2) < 1) {
    fail<ShapeError>("conv2d: a {} x {} kernel does not fit (input {}, weight {}, padding {})",
                     weight.size(1), weight.size(2), x.shape(), weight.shape(), padding);
  }
  return {x.size(0), room_h / stride + 1, room_w / stride + 1, weight.size(0)};
}

}  // namespace

Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t stride,
              int64_t padding, const Tensor& residual) {
  require_activation("conv2d", "input", x);
  require_parameter("conv2d", "weight", weight, x);
  require_rank("conv2d", "input", x, 4, "[N, H, W, C]");
  require_rank("conv2d", "weight", weight, 4, "[C_out, kH, kW, C]");
  const Shape shape = conv2d_shape(x, weight, stride, padding);
  if (bias.defined()) {
    require_parameter("conv2d", "bias", bias, x);
    require_shape("conv2d", "bias", bias, {weight.size(0)});
  }
  if (residual.defined()) {
    require_alike("conv2d", "residual", residual, x);
    require_shape("conv2d", "residual", residual, shape);
  }
  const Conv2dGeometry geometry{stride, padding};
  const Tensor out = Tensor::empty(shape, x.dtype(), x.device());
  backend(x).conv2d(x, as_factor(weight, x), bias, residual, geometry, out);
  return record("conv2d", out, {x, weight, bias, residual},
                [geometry, shape_x = x.shape(), shape_weight = weight.shape(),
                 want_bias = bias.requires_grad(), saved_x = save_if(weight.requires_grad(), x),
                 saved_weight = save_if(x.requires_grad(), weight)](
                    const Tensor& cotangent) -> std::vector<Tensor> {
                  const Device device = cotangent.device();
                  Tensor dx, dweight, dbias;
                  if (saved_weight.defined()) {
                    dx = Tensor::empty(shape_x, cotangent.dtype(), device);
                    backend(device).conv2d_backward_input(
                        cotangent, as_factor(saved_weight, cotangent), geometry, dx);
                  }
                  if (saved_x.defined()) {
                    dweight = Tensor::empty(shape_weight, parameter_dtype(cotangent), device);
                    backend(device).conv2d_backward_weight(saved_x, cotangent, geometry, dweight);
                  }
                  if (want_bias) dbias = sum_to_parameter(cotangent, {cotangent.size(-1)});
                  return {dx, dweight, dbias, cotangent};
                });
}

}  // namespace mutilde
