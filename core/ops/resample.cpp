// Images of another size, [N, H, W, C].
#include "core/ops/check.h"
#include "core/ops/ops.h"

namespace mutilde {

namespace {

void require_images(const char* op, const Tensor& x) {
  require_activation(op, "x", x);
  require_rank(op, "x", x, 4, "[N, H, W, C]");
}

Tensor call_upsample(const Tensor& x, int64_t factor, double scale) {
  const int64_t height = size_product("upsample_nearest", x.size(1), factor);
  const int64_t width = size_product("upsample_nearest", x.size(2), factor);
  const Tensor out = Tensor::empty({x.size(0), height, width, x.size(3)}, x.dtype(), x.device());
  backend(x).upsample_nearest(x, factor, scale, out);
  return out;
}

Tensor call_sum_pool(const Tensor& x, int64_t factor, double scale) {
  const Tensor out = Tensor::empty({x.size(0), x.size(1) / factor, x.size(2) / factor, x.size(3)},
                                   x.dtype(), x.device());
  backend(x).sum_pool(x, factor, scale, out);
  return out;
}

}  // namespace

Tensor upsample_nearest(const Tensor& x, int64_t factor) {
  require_images("upsample_nearest", x);
  if (factor < 1)
    fail<ShapeError>("upsample_nearest: factor {} given, at least 1 expected", factor);
  return record("upsample_nearest", call_upsample(x, factor, 1), {x},
                [factor](const Tensor& cotangent) -> std::vector<Tensor> {
                  return {call_sum_pool(cotangent, factor, 1)};
                });
}

Tensor avg_pool2d(const Tensor& x, int64_t factor) {
  require_images("avg_pool2d", x);
  if (factor < 1 || x.size(1) % factor != 0 || x.size(2) % factor != 0) {
    fail<ShapeError>("avg_pool2d: {} does not divide into blocks of {} x {}", x.shape(), factor,
                     factor);
  }
  const double side = static_cast<double>(factor), scale = 1.0 / (side * side);
  return record("avg_pool2d", call_sum_pool(x, factor, scale), {x},
                [factor, scale](const Tensor& cotangent) -> std::vector<Tensor> {
                  return {call_upsample(cotangent, factor, scale)};
                });
}

Tensor resize_bilinear(const Tensor& x, int64_t height, int64_t width) {
  require_images("resize_bilinear", x);
  require_floating("resize_bilinear", "x", x);
  if (height < 1 || width < 1 || x.size(1) < 1 || x.size(2) < 1) {
    fail<ShapeError>("resize_bilinear: cannot resize {} to {} x {}", x.shape(), height, width);
  }
  const Tensor out = Tensor::empty({x.size(0), height, width, x.size(3)}, x.dtype(), x.device());
  backend(x).resize_bilinear(x, out);
  return record("resize_bilinear", out, {x},
                [shape = x.shape()](const Tensor& cotangent) -> std::vector<Tensor> {
                  const Tensor dx = Tensor::empty(shape, cotangent.dtype(), cotangent.device());
                  backend(dx).resize_bilinear_backward(cotangent, dx);
                  return {dx};
                });
}

}  // namespace mutilde
