// What the ops check before they call a kernel (kernels trust their callers), and small things that
// several families share.
#pragma once

#include <vector>

#include "core/precision.h"
#include "core/tensor.h"

namespace mutilde {

inline void require_defined(const char* op, const char* name, const Tensor& x) {
  if (!x.defined()) fail<Error>("{}: {} is undefined", op, name);
}

inline void require_floating(const char* op, const char* name, const Tensor& x) {
  require_defined(op, name, x);
  if (!is_floating(x.dtype()) || is_short(x.dtype())) {
    fail<DTypeError>("{}: {} is {}, float32 or float64 is expected", op, name, name_of(x.dtype()));
  }
}

/// Floating, and a short type only on a device whose kernels take it.
inline void require_activation(const char* op, const char* name, const Tensor& x) {
  require_defined(op, name, x);
  if (is_short(x.dtype()) && backend(x).has_kernels_for(x.dtype())) return;
  require_floating(op, name, x);
}

inline void require_dtype(const char* op, const char* name, const Tensor& x, DType dtype) {
  require_defined(op, name, x);
  if (x.dtype() != dtype) {
    fail<DTypeError>("{}: {} is {}, {} is expected", op, name, name_of(x.dtype()), name_of(dtype));
  }
}

inline void require_same_device(const char* op, const char* name, const Tensor& x,
                                const Tensor& first) {
  if (!(x.device() == first.device())) {
    fail<Error>("{}: {} is on {}, the first input is on {}", op, name, x.device().to_string(),
                first.device().to_string());
  }
}

/// Defined, and of the dtype and on the device of the op's first input.
inline void require_alike(const char* op, const char* name, const Tensor& x, const Tensor& first) {
  require_defined(op, name, x);
  if (x.dtype() != first.dtype()) {
    fail<DTypeError>("{}: {} is {}, the first input is {}", op, name, name_of(x.dtype()),
                     name_of(first.dtype()));
  }
  require_same_device(op, name, x, first);
}

/// What parameters, statistics and their gradients are where activations are x: float32 at least.
inline DType parameter_dtype(const Tensor& x) {
  return x.dtype() == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

/// Of that dtype, and on x's device.
inline void require_parameter(const char* op, const char* name, const Tensor& parameter,
                              const Tensor& x) {
  if (!is_short(x.dtype())) return require_alike(op, name, parameter, x);
  require_dtype(op, name, parameter, DType::kFloat32);
  require_same_device(op, name, parameter, x);
}

/// A weight as factor of a product with x: with its short copy where the product may round to that.
inline ConstView as_factor(const Tensor& weight, const Tensor& x) {
  ConstView view = weight;
  const DType type = factor_dtype(x.dtype());
  if (is_short(type) && backend(x).has_kernels_for(type)) {
    const Tensor copy = weight.shortened(type);
    if (weight.short_copy().defined()) {  // the weight keeps it
      view.short_copy = copy.raw();
      view.short_type = type;
    }
  }
  return view;
}

/// `axes` names them for the message: "[N, H, W, C]".
inline void require_rank(const char* op, const char* name, const Tensor& x, int rank,
                         const char* axes) {
  if (x.rank() != rank) fail<ShapeError>("{}: {} is {}, {} is expected", op, name, x.shape(), axes);
}

inline void require_shape(const char* op, const char* name, const Tensor& x, const Shape& shape) {
  if (!(x.shape() == shape)) {
    fail<ShapeError>("{}: {} is {}, {} is expected", op, name, x.shape(), shape);
  }
}

/// a * b, a size of the output. Throws ShapeError if it overflows.
inline int64_t size_product(const char* op, int64_t a, int64_t b) {
  int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) {
    fail<ShapeError>("{}: a size of {} times {} is more than 64 bits can count", op, a, b);
  }
  return product;
}

/// What a backward needs of a tensor, outside the graph; nothing where it is not needed.
inline Tensor save_if(bool needed, const Tensor& x) { return needed ? x.detach() : Tensor{}; }

/// Sums x over the axes along which `shape` was broadcast to x's shape: the backward of a
/// broadcast. Not recorded. Defined in reduce.cpp.
Tensor sum_to(const Tensor& x, const Shape& shape);
/// The same for a parameter that was broadcast: in parameter_dtype(x).
Tensor sum_to_parameter(const Tensor& x, const Shape& shape);

}  // namespace mutilde
