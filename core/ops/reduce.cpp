// Sums, means and maxima over any axes.
#include <array>

#include "core/ops/check.h"
#include "core/ops/ops.h"

namespace mutilde {

namespace {

// The shapes that a reduction writes: with the reduced axes of size 1, and as the caller wants it.
struct Reduced {
  Shape kept, out;
  int64_t count = 1;  // elements behind one result
};

Reduced reduced_shapes(const char* op, const Tensor& x, const std::vector<int>& axes,
                       bool keep_axes) {
  std::array<bool, Shape::kMaxRank> is_reduced{};
  if (axes.empty()) is_reduced.fill(true);
  for (int axis : axes) {
    if (axis < -x.rank() || axis >= x.rank()) {
      fail<ShapeError>("{}: axis {} does not exist in {}", op, axis, x.shape());
    }
    bool& flag = is_reduced[static_cast<size_t>(x.shape().axis_index(axis))];
    if (flag) fail<ShapeError>("{}: axis {} of {} is given twice", op, axis, x.shape());
    flag = true;
  }
  Reduced reduced{x.shape(), {}, 1};
  std::vector<int64_t> remaining;
  for (int axis = 0; axis < x.rank(); ++axis) {
    if (is_reduced[static_cast<size_t>(axis)]) {
      reduced.count *= x.size(axis);
      reduced.kept = reduced.kept.with(axis, 1);
    } else {
      remaining.push_back(x.size(axis));
    }
  }
  reduced.out = keep_axes ? reduced.kept : Shape(std::span<const int64_t>(remaining));
  return reduced;
}

Tensor call_reduce(ReduceOp op, const Tensor& x, const Shape& kept) {
  const Tensor out = Tensor::empty(kept, parameter_dtype(x), x.device());
  backend(x).reduce(op, x, out);
  return out;
}

}  // namespace

Tensor sum_to_parameter(const Tensor& x, const Shape& shape) {
  Shape kept = x.shape();  // `shape` with leading axes of size 1
  for (int i = 1; i <= x.rank(); ++i) kept = kept.with(-i, i <= shape.rank() ? shape[-i] : 1);
  if (x.shape() == kept) return cast(view_of(x, shape, 0), parameter_dtype(x));
  return view_of(call_reduce(ReduceOp::kSum, x, kept), shape, 0);
}

Tensor sum_to(const Tensor& x, const Shape& shape) {
  return x.shape() == shape ? x : cast(sum_to_parameter(x, shape), x.dtype());
}

Tensor sum(const Tensor& x, const std::vector<int>& axes, bool keep_axes) {
  require_floating("sum", "x", x);
  const Reduced reduced = reduced_shapes("sum", x, axes, keep_axes);
  const Tensor out = view_of(call_reduce(ReduceOp::kSum, x, reduced.kept), reduced.out, 0);
  return record(
      "sum", out, {x},
      [kept = reduced.kept, shape = x.shape()](const Tensor& cotangent) -> std::vector<Tensor> {
        return {broadcast_to(view_of(cotangent, kept, 0), shape)};
      });
}

Tensor mean(const Tensor& x, const std::vector<int>& axes, bool keep_axes) {
  require_floating("mean", "x", x);
  const int64_t count = reduced_shapes("mean", x, axes, keep_axes).count;
  if (count == 0) fail<ShapeError>("mean: no elements to average in {}", x.shape());
  return sum(x, axes, keep_axes) / static_cast<double>(count);
}

Tensor max(const Tensor& x, const std::vector<int>& axes, bool keep_axes) {
  require_floating("max", "x", x);
  const Reduced reduced = reduced_shapes("max", x, axes, keep_axes);
  if (reduced.count == 0) fail<ShapeError>("max: no elements to choose from in {}", x.shape());
  const Tensor y = call_reduce(ReduceOp::kMax, x, reduced.kept);
  return record("max", view_of(y, reduced.out, 0), {x},
                [saved_x = x.detach(), y](const Tensor& cotangent) -> std::vector<Tensor> {
                  const Tensor dx = empty_like(saved_x);
                  const Tensor dout = view_of(cotangent, y.shape(), 0);
                  backend(dx).max_backward(saved_x, y, dout, dx);
                  return {dx};
                });
}

Tensor mean_flat(const Tensor& x) {
  require_floating("mean_flat", "x", x);
  if (x.rank() < 2) fail<ShapeError>("mean_flat: x is {}, [N, ..] is expected", x.shape());
  std::vector<int> axes;
  for (int axis = 1; axis < x.rank(); ++axis) axes.push_back(axis);
  return mean(x, axes);
}

Tensor mean_squared_error(const Tensor& a, const Tensor& b) {
  require_floating("mean_squared_error", "a", a);
  require_alike("mean_squared_error", "b", b, a);
  require_shape("mean_squared_error", "b", b, a.shape());
  return mean(square(a - b));
}

}  // namespace mutilde
