// Ops that move elements and change none: views, permutations, joins and parts, dtypes, broadcasts.
#include "core/ops/check.h"
#include "core/ops/ops.h"

namespace mutilde {

Tensor Tensor::reshape(const Shape& shape) const {
  require_defined("reshape", "x", *this);
  if (shape.numel() != numel()) {
    fail<ShapeError>("reshape: {} has {} elements, {} has {}", shape_, numel(), shape,
                     shape.numel());
  }
  return record("reshape", view_of(*this, shape, 0), {*this},
                [before = shape_](const Tensor& cotangent) -> std::vector<Tensor> {
                  return {view_of(cotangent, before, 0)};
                });
}

Tensor Tensor::slice(int64_t begin, int64_t end) const {
  require_defined("slice", "x", *this);
  if (rank() == 0) fail<ShapeError>("slice: a scalar has no rows");
  if (begin < 0 || begin > end || end > size(0)) {
    fail<ShapeError>("slice: rows [{}, {}) do not exist in {}", begin, end, shape_);
  }
  const Tensor view =
      view_of(*this, shape_.with(0, end - begin), begin * shape_.product(1, rank()));
  return record("slice", view, {*this},
                [before = shape_, begin](const Tensor& cotangent) -> std::vector<Tensor> {
                  const Tensor dx = Tensor::zeros(before, cotangent.dtype(), cotangent.device());
                  backend(dx).copy_slice(cotangent, 0, 0, cotangent.size(0), dx, begin);
                  return {dx};
                });
}

Tensor Tensor::to(DType dtype) const { return cast(*this, dtype); }

Tensor cast(const Tensor& x, DType dtype) {
  require_defined("cast", "x", x);
  if (x.dtype() == dtype) return x;
  const Tensor out = Tensor::empty(x.shape(), dtype, x.device());
  backend(x).cast(x, out);
  if (!is_floating(dtype)) return out;
  return record("cast", out, {x},
                [before = x.dtype()](const Tensor& cotangent) -> std::vector<Tensor> {
                  return {cast(cotangent, before)};
                });
}

Tensor permute(const Tensor& x, const std::vector<int>& axes) {
  require_defined("permute", "x", x);
  const auto wrong = [&] {
    fail<ShapeError>("permute: axes [{}] are no order of the {} axes of {}", fmt::join(axes, ","),
                     x.rank(), x.shape());
  };
  if (static_cast<int>(axes.size()) != x.rank()) wrong();
  std::vector<int> order(axes.size()), inverse(axes.size(), -1);
  Shape shape = x.shape();
  for (int i = 0; i < x.rank(); ++i) {
    const int axis = axes[static_cast<size_t>(i)];
    if (axis < -x.rank() || axis >= x.rank()) wrong();
    const int from = x.shape().axis_index(axis);
    if (inverse[static_cast<size_t>(from)] != -1) wrong();
    order[static_cast<size_t>(i)] = from;
    inverse[static_cast<size_t>(from)] = i;
    shape = shape.with(i, x.size(from));
  }
  const Tensor out = Tensor::empty(shape, x.dtype(), x.device());
  backend(x).permute(x, order, out);
  return record("permute", out, {x}, [inverse](const Tensor& cotangent) -> std::vector<Tensor> {
    return {permute(cotangent, inverse)};
  });
}

Tensor concat(const std::vector<Tensor>& parts) {
  if (parts.empty()) fail<Error>("concat: no tensors given");
  const Tensor& first = parts.front();
  require_defined("concat", "part 0", first);
  if (first.rank() == 0) fail<ShapeError>("concat: a scalar has no channels");
  int64_t channels = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string name = fmt::format("part {}", i);
    require_alike("concat", name.c_str(), parts[i], first);
    if (parts[i].rank() != first.rank() ||
        !(parts[i].shape().with(-1, 0) == first.shape().with(-1, 0))) {
      fail<ShapeError>("concat: part {} is {}, part 0 is {}: only the last axis may differ", i,
                       parts[i].shape(), first.shape());
    }
    channels += parts[i].size(-1);
  }
  const int axis = first.rank() - 1;
  const Tensor out = Tensor::empty(first.shape().with(-1, channels), first.dtype(), first.device());
  std::vector<int64_t> begins{0};
  std::vector<bool> wanted;
  for (const Tensor& part : parts) {
    backend(out).copy_slice(part, axis, 0, part.size(-1), out, begins.back());
    begins.push_back(begins.back() + part.size(-1));
    wanted.push_back(part.requires_grad());
  }
  return record("concat", out, parts, [begins, wanted](const Tensor& cotangent) {
    std::vector<Tensor> gradients(wanted.size());
    for (size_t i = 0; i < wanted.size(); ++i) {
      if (wanted[i]) gradients[i] = slice_channels(cotangent, begins[i], begins[i + 1]);
    }
    return gradients;
  });
}

Tensor slice_channels(const Tensor& x, int64_t begin, int64_t end) {
  require_defined("slice_channels", "x", x);
  if (x.rank() == 0) fail<ShapeError>("slice_channels: a scalar has no channels");
  if (begin < 0 || begin > end || end > x.size(-1)) {
    fail<ShapeError>("slice_channels: channels [{}, {}) do not exist in {}", begin, end, x.shape());
  }
  const int axis = x.rank() - 1;
  const Tensor out = Tensor::empty(x.shape().with(-1, end - begin), x.dtype(), x.device());
  backend(x).copy_slice(x, axis, begin, end - begin, out, 0);
  return record("slice_channels", out, {x},
                [axis, begin, before = x.shape()](const Tensor& cotangent) -> std::vector<Tensor> {
                  const Tensor dx = Tensor::zeros(before, cotangent.dtype(), cotangent.device());
                  backend(dx).copy_slice(cotangent, axis, 0, cotangent.size(-1), dx, begin);
                  return {dx};
                });
}

std::vector<Tensor> split(const Tensor& x, int64_t parts) {
  require_defined("split", "x", x);
  if (x.rank() == 0 || parts < 1 || x.size(-1) % parts != 0) {
    fail<ShapeError>("split: the last axis of {} does not divide into {} parts", x.shape(), parts);
  }
  const int64_t channels = x.size(-1) / parts;
  std::vector<Tensor> slices;
  for (int64_t i = 0; i < parts; ++i) {
    slices.push_back(slice_channels(x, i * channels, (i + 1) * channels));
  }
  return slices;
}

Tensor broadcast_to(const Tensor& x, const Shape& shape) {
  require_activation("broadcast_to", "x", x);
  if (x.shape() == shape) return x;
  if (!(broadcast_shapes("broadcast_to", x.shape(), shape) == shape)) {
    fail<ShapeError>("broadcast_to: {} does not broadcast to {}", x.shape(), shape);
  }
  const Tensor out = Tensor::empty(shape, x.dtype(), x.device());
  // Both sides of a binary kernel broadcast to the output's shape.
  const Tensor one = Tensor::full({}, 1, x.dtype(), x.device());
  backend(x).binary(BinaryOp::kMul, x, one, out);
  return record("broadcast_to", out, {x},
                [before = x.shape()](const Tensor& cotangent) -> std::vector<Tensor> {
                  return {sum_to(cotangent, before)};
                });
}

}  // namespace mutilde
