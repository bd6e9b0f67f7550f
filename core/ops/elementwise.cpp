// Ops that work on each element by itself.
#include "core/ops/check.h"
#include "core/ops/ops.h"

namespace mutilde {

namespace {

Tensor call_binary(const char* name, BinaryOp op, const Tensor& a, const Tensor& b) {
  require_activation(name, "a", a);
  require_alike(name, "b", b, a);
  const bool compares = op == BinaryOp::kLess || op == BinaryOp::kGreaterEqual;
  const Tensor out = Tensor::empty(broadcast_shapes(name, a.shape(), b.shape()),
                                   compares ? DType::kUInt8 : a.dtype(), a.device());
  backend(a).binary(op, a, b, out);
  return out;
}

// What the derivative is written in: tanh' = 1 - y^2 needs y alone, silu' needs x. It must agree
// with what the op's case in each backend's unary_backward reads (from_x or from_y): that gets
// nothing else.
enum class Saves { kInput, kOutput, kNothing };

Tensor call_unary(const char* name, UnaryOp op, const Tensor& x, Saves saves) {
  require_activation(name, "x", x);
  const Tensor out = empty_like(x);
  backend(x).unary(op, x, out);
  return record(name, out, {x},
                [op, saved_x = save_if(saves == Saves::kInput, x),
                 saved_y = save_if(saves == Saves::kOutput, out)](
                    const Tensor& cotangent) -> std::vector<Tensor> {
                  const Tensor dx = empty_like(cotangent);
                  backend(cotangent).unary_backward(op, saved_x, saved_y, cotangent, dx);
                  return {dx};
                });
}

}  // namespace

Tensor add(const Tensor& a, const Tensor& b) {
  const Tensor out = call_binary("add", BinaryOp::kAdd, a, b);
  return record("add", out, {a, b},
                [shape_a = a.shape(), shape_b = b.shape(), want_a = a.requires_grad(),
                 want_b = b.requires_grad()](const Tensor& cotangent) -> std::vector<Tensor> {
                  return {want_a ? sum_to(cotangent, shape_a) : Tensor{},
                          want_b ? sum_to(cotangent, shape_b) : Tensor{}};
                });
}

Tensor sub(const Tensor& a, const Tensor& b) {
  const Tensor out = call_binary("sub", BinaryOp::kSub, a, b);
  return record("sub", out, {a, b},
                [shape_a = a.shape(), shape_b = b.shape(), want_a = a.requires_grad(),
                 want_b = b.requires_grad()](const Tensor& cotangent) -> std::vector<Tensor> {
                  return {want_a ? sum_to(cotangent, shape_a) : Tensor{},
                          want_b ? -sum_to(cotangent, shape_b) : Tensor{}};
                });
}

Tensor mul(const Tensor& a, const Tensor& b) {
  const Tensor out = call_binary("mul", BinaryOp::kMul, a, b);
  return record(
      "mul", out, {a, b},
      [shape_a = a.shape(), shape_b = b.shape(), want_a = a.requires_grad(),
       want_b = b.requires_grad(), saved_a = save_if(b.requires_grad(), a),
       saved_b = save_if(a.requires_grad(), b)](const Tensor& cotangent) -> std::vector<Tensor> {
        return {want_a ? sum_to(cotangent * saved_b, shape_a) : Tensor{},
                want_b ? sum_to(cotangent * saved_a, shape_b) : Tensor{}};
      });
}

Tensor div(const Tensor& a, const Tensor& b) {
  const Tensor out = call_binary("div", BinaryOp::kDiv, a, b);
  return record("div", out, {a, b},
                [shape_a = a.shape(), shape_b = b.shape(), want_a = a.requires_grad(),
                 want_b = b.requires_grad(), saved_b = b.detach(),
                 saved_out = save_if(b.requires_grad(), out)](
                    const Tensor& cotangent) -> std::vector<Tensor> {
                  const Tensor ratio = cotangent / saved_b;  // d(a / b) = da / b - db (a / b) / b
                  return {want_a ? sum_to(ratio, shape_a) : Tensor{},
                          want_b ? -sum_to(ratio * saved_out, shape_b) : Tensor{}};
                });
}

Tensor affine(const Tensor& x, double scale, double shift) {
  require_activation("affine", "x", x);
  const Tensor out = empty_like(x);
  backend(x).affine(x, scale, shift, out);
  return record("affine", out, {x}, [scale](const Tensor& cotangent) -> std::vector<Tensor> {
    return {scale == 1 ? cotangent : affine(cotangent, scale, 0)};
  });
}

Tensor operator/(double s, const Tensor& x) { return affine(reciprocal(x), s, 0); }
Tensor operator-(const Tensor& x) { return call_unary("neg", UnaryOp::kNeg, x, Saves::kNothing); }
Tensor exp(const Tensor& x) { return call_unary("exp", UnaryOp::kExp, x, Saves::kOutput); }
Tensor log(const Tensor& x) { return call_unary("log", UnaryOp::kLog, x, Saves::kInput); }
Tensor sqrt(const Tensor& x) { return call_unary("sqrt", UnaryOp::kSqrt, x, Saves::kOutput); }
Tensor square(const Tensor& x) { return call_unary("square", UnaryOp::kSquare, x, Saves::kInput); }
Tensor reciprocal(const Tensor& x) {
  return call_unary("reciprocal", UnaryOp::kReciprocal, x, Saves::kOutput);
}
Tensor abs(const Tensor& x) { return call_unary("abs", UnaryOp::kAbs, x, Saves::kInput); }
Tensor sin(const Tensor& x) { return call_unary("sin", UnaryOp::kSin, x, Saves::kInput); }
Tensor cos(const Tensor& x) { return call_unary("cos", UnaryOp::kCos, x, Saves::kInput); }
Tensor tanh(const Tensor& x) { return call_unary("tanh", UnaryOp::kTanh, x, Saves::kOutput); }
Tensor sigmoid(const Tensor& x) {
  return call_unary("sigmoid", UnaryOp::kSigmoid, x, Saves::kOutput);
}
Tensor silu(const Tensor& x) { return call_unary("silu", UnaryOp::kSilu, x, Saves::kInput); }

Tensor clamp(const Tensor& x, double low, double high) {
  require_activation("clamp", "x", x);
  if (!(low <= high)) fail<Error>("clamp: low {} is not below high {}", low, high);
  const Tensor out = empty_like(x);
  backend(x).clamp(x, low, high, out);
  return record("clamp", out, {x},
                [low, high, saved_x = x.detach()](const Tensor& cotangent) -> std::vector<Tensor> {
                  const Tensor dx = empty_like(cotangent);
                  backend(cotangent).clamp_backward(saved_x, low, high, cotangent, dx);
                  return {dx};
                });
}

Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b) {
  require_dtype("where", "condition", condition, DType::kUInt8);
  require_activation("where", "a", a);
  require_alike("where", "b", b, a);
  require_same_device("where", "condition", condition, a);
  const Shape shape =
      broadcast_shapes("where", condition.shape(), broadcast_shapes("where", a.shape(), b.shape()));
  const Tensor out = Tensor::empty(shape, a.dtype(), a.device());
  backend(a).where(condition, a, b, out);
  return record("where", out, {a, b},
                [condition, shape_a = a.shape(), shape_b = b.shape(), want_a = a.requires_grad(),
                 want_b = b.requires_grad()](const Tensor& cotangent) -> std::vector<Tensor> {
                  const Tensor zero = Tensor::zeros({}, cotangent.dtype(), cotangent.device());
                  return {want_a ? sum_to(where(condition, cotangent, zero), shape_a) : Tensor{},
                          want_b ? sum_to(where(condition, zero, cotangent), shape_b) : Tensor{}};
                });
}

Tensor less(const Tensor& a, const Tensor& b) { return call_binary("less", BinaryOp::kLess, a, b); }
Tensor greater_equal(const Tensor& a, const Tensor& b) {
  return call_binary("greater_equal", BinaryOp::kGreaterEqual, a, b);
}

Tensor dropout(const Tensor& x, double p, RandomPosition position) {
  require_activation("dropout", "x", x);
  if (!(p >= 0 && p < 1)) fail<Error>("dropout: p is {}, 0 <= p < 1 is expected", p);
  if (position.offset % 4 != 0) {
    fail<Error>("dropout: the offset {} of the random position is no multiple of 4",
                position.offset);
  }
  if (p == 0) return x;
  const Tensor out = empty_like(x);
  backend(x).dropout(x, p, position, out);
  // The mask is drawn again from its position: nothing is saved.
  return record("dropout", out, {x}, [p, position](const Tensor& cotangent) -> std::vector<Tensor> {
    return {dropout(cotangent, p, position)};
  });
}

}  // namespace mutilde
