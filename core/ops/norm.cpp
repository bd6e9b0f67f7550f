// Normalisation: group norm, plain and fused, and softmax.
#include "core/ops/check.h"
#include "core/ops/ops.h"

namespace mutilde {

namespace {

Tensor call_group_norm(const char* name, const Tensor& x, const Tensor& weight, const Tensor& bias,
                       const Tensor& scale_shift, const GroupNormOptions& options) {
  require_activation(name, "x", x);
  if (x.rank() < 2) fail<ShapeError>("{}: x is {}, [N, .., C] is expected", name, x.shape());
  const int64_t N = x.size(0), C = x.size(-1), P = x.shape().product(1, x.rank() - 1);
  if (options.groups < 1 || C % options.groups != 0) {
    fail<ShapeError>("{}: {} channels do not divide into {} groups (x {})", name, C, options.groups,
                     x.shape());
  }
  require_parameter(name, "weight", weight, x);
  require_parameter(name, "bias", bias, x);
  require_shape(name, "weight", weight, {C});
  require_shape(name, "bias", bias, {C});
  if (scale_shift.defined()) {
    require_parameter(name, "scale_shift", scale_shift, x);
    require_shape(name, "scale_shift", scale_shift, {N, 2 * C});
  }
  const Tensor x3 = view_of(x, {N, P, C}, 0);
  const Tensor out = empty_like(x3);
  const Tensor mean = Tensor::empty({N, options.groups}, parameter_dtype(x), x.device());
  const Tensor rstd = empty_like(mean);
  backend(x).group_norm(x3, weight, bias, scale_shift, options, out, mean, rstd);
  return record(
      name, view_of(out, x.shape(), 0), {x, weight, bias, scale_shift},
      [options, x3, mean, rstd, shape = x.shape(), weight = weight.detach(), bias = bias.detach(),
       scale_shift = scale_shift.detach()](const Tensor& cotangent) -> std::vector<Tensor> {
        const Tensor dout = view_of(cotangent, x3.shape(), 0);
        const Tensor dx = empty_like(x3);
        const Tensor dweight = empty_like(weight), dbias = empty_like(bias);
        const Tensor dscale_shift = scale_shift.defined() ? empty_like(scale_shift) : Tensor{};
        backend(dx).group_norm_backward(x3, weight, bias, scale_shift, mean, rstd, options, dout,
                                        dx, dweight, dbias, dscale_shift);
        return {view_of(dx, shape, 0), dweight, dbias, dscale_shift};
      });
}

}  // namespace

Tensor group_norm(const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias,
                  double norm_eps) {
  return call_group_norm("group_norm", x, weight, bias, {}, {groups, norm_eps, false});
}

// Defined by: silu(group_norm(x) * (1 + scale) + shift)
Tensor group_norm_silu(const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias,
                       const Tensor& scale_shift, double norm_eps) {
  return call_group_norm("group_norm_silu", x, weight, bias, scale_shift, {groups, norm_eps, true});
}

Tensor softmax(const Tensor& x) {
  require_floating("softmax", "x", x);
  if (x.rank() == 0) fail<ShapeError>("softmax: a scalar has no last axis");
  const Tensor y = empty_like(x);
  backend(x).softmax(x, y);
  return record("softmax", y, {x}, [y](const Tensor& cotangent) -> std::vector<Tensor> {
    const Tensor dx = empty_like(y);
    backend(y).softmax_backward(y, cotangent, dx);
    return {dx};
  });
}

}  // namespace mutilde
