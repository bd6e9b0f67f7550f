// Matrix products.
#include "core/ops/check.h"
#include "core/ops/ops.h"

namespace mutilde {

namespace {

// [.., R, S] as a batch of matrices.
Tensor as_batch(const Tensor& x) {
  return view_of(x, {x.shape().product(0, x.rank() - 2), x.size(-2), x.size(-1)}, 0);
}

Tensor call_matmul(const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b,
                   DType dtype) {
  const Tensor out = Tensor::empty({a.size(0) == 1 ? b.size(0) : a.size(0),
                                    a.size(transpose_a ? 2 : 1), b.size(transpose_b ? 1 : 2)},
                                   dtype, a.device());
  backend(a).matmul(a, transpose_a, b, transpose_b, out);
  return out;
}

// The gradient of one side, summed over the batch where that side is shared by it.
Tensor as_input(const Tensor& gradient, int64_t batch, const Shape& shape) {
  const Tensor summed = batch == 1 ? sum_to(gradient, gradient.shape().with(0, 1)) : gradient;
  return view_of(summed, shape, 0);
}

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b, bool transpose_a, bool transpose_b) {
  require_floating("matmul", "a", a);
  require_alike("matmul", "b", b, a);
  if (a.rank() < 2 || b.rank() < 2) {
    fail<ShapeError>("matmul: two matrices are expected (a {}, b {})", a.shape(), b.shape());
  }
  const int64_t M = a.size(transpose_a ? -1 : -2), K = a.size(transpose_a ? -2 : -1);
  const int64_t N = b.size(transpose_b ? -2 : -1), K_b = b.size(transpose_b ? -1 : -2);
  if (K != K_b) {
    fail<ShapeError>("matmul: a has inner size {}, b has {} (a {}{}, b {}{})", K, K_b, a.shape(),
                     transpose_a ? " transposed" : "", b.shape(), transpose_b ? " transposed" : "");
  }
  const auto leading = [](const Tensor& x) {
    return std::span<const int64_t>(x.shape().begin(), static_cast<size_t>(x.rank() - 2));
  };
  if (a.rank() > 2 && b.rank() > 2 && !(Shape(leading(a)) == Shape(leading(b)))) {
    fail<ShapeError>("matmul: leading axes differ (a {}, b {})", a.shape(), b.shape());
  }
  const std::span<const int64_t> batch_axes = leading(a.rank() > 2 ? a : b);
  std::vector<int64_t> sizes(batch_axes.begin(), batch_axes.end());
  sizes.insert(sizes.end(), {M, N});

  // Rows of many matrices that meet one b are just more rows: one large product instead of many.
  const bool is_one_product = b.rank() == 2 && !transpose_a;
  const Tensor a3 =
      is_one_product ? view_of(a, {1, a.shape().product(0, a.rank() - 1), K}, 0) : as_batch(a);
  const Tensor b3 = as_batch(b);
  const Tensor out3 = call_matmul(a3, transpose_a, b3, transpose_b, a.dtype());
  return record(
      "matmul", view_of(out3, Shape(std::span<const int64_t>(sizes)), 0), {a, b},
      [transpose_a, transpose_b, shape_a = a.shape(), shape_b = b.shape(), shape_out = out3.shape(),
       batch_a = a3.size(0), batch_b = b3.size(0), saved_a = save_if(b.requires_grad(), a3),
       saved_b = save_if(a.requires_grad(), b3)](const Tensor& cotangent) -> std::vector<Tensor> {
        const Tensor dout = view_of(cotangent, shape_out, 0);
        const DType dtype = dout.dtype();
        Tensor da, db;
        if (saved_b.defined()) {  // dA = dO B^T, or transposed, dA^T = B dO^T
          da = transpose_a ? call_matmul(saved_b, transpose_b, dout, true, dtype)
                           : call_matmul(dout, false, saved_b, !transpose_b, dtype);
          da = as_input(da, batch_a, shape_a);
        }
        if (saved_a.defined()) {  // dB = A^T dO, or transposed, dB^T = dO^T A
          db = transpose_b ? call_matmul(dout, true, saved_a, transpose_a, dtype)
                           : call_matmul(saved_a, !transpose_a, dout, false, dtype);
          db = as_input(db, batch_b, shape_b);
        }
        return {da, db};
      });
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& residual) {
  require_activation("linear", "x", x);
  require_parameter("linear", "weight", weight, x);
  require_rank("linear", "weight", weight, 2, "[N, K]");
  if (x.rank() < 1 || x.size(-1) != weight.size(1)) {
    fail<ShapeError>("linear: x is {}, [.., {}] is expected (weight {})", x.shape(), weight.size(1),
                     weight.shape());
  }
  const int64_t M = x.shape().product(0, x.rank() - 1), N = weight.size(0), K = weight.size(1);
  if (bias.defined()) {
    require_parameter("linear", "bias", bias, x);
    require_shape("linear", "bias", bias, {N});
  }
  const Shape shape = x.shape().with(-1, N);
  if (residual.defined()) {
    require_alike("linear", "residual", residual, x);
    require_shape("linear", "residual", residual, shape);
  }
  const Tensor out = Tensor::empty({M, N}, x.dtype(), x.device());
  backend(x).linear(view_of(x, {M, K}, 0), as_factor(weight, x), bias, residual, out);
  return record("linear", view_of(out, shape, 0), {x, weight, bias, residual},
                [M, N, K, shape_x = x.shape(), want_bias = bias.requires_grad(),
                 saved_x = save_if(weight.requires_grad(), view_of(x, {1, M, K}, 0)),
                 saved_weight = save_if(x.requires_grad(), view_of(weight, {1, N, K}, 0))](
                    const Tensor& cotangent) -> std::vector<Tensor> {
                  const Tensor dout = view_of(cotangent, {1, M, N}, 0);
                  Tensor dx, dweight, dbias;
                  if (saved_weight.defined()) {
                    dx = Tensor::empty(shape_x, dout.dtype(), dout.device());
                    const Tensor dx3 = view_of(dx, {1, M, K}, 0);
                    backend(dx).matmul(dout, false, as_factor(saved_weight, dout), false, dx3);
                  }
                  if (saved_x.defined()) {
                    dweight = view_of(
                        call_matmul(dout, true, saved_x, false, parameter_dtype(dout)), {N, K}, 0);
                  }
                  if (want_bias) dbias = sum_to_parameter(dout, {N});
                  return {dx, dweight, dbias, cotangent};
                });
}

}  // namespace mutilde
