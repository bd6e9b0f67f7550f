// From an element's number to its place in another tensor: what broadcasting, permuting and reducing
// have in common.
#pragma once

#include <cstdint>
#include <span>

#include "core/shape.h"
#include "cuda/launch.h"

namespace mutilde::cuda {

/// A walk over some axes of a tensor, the innermost first. Element number i of the walk, written in
/// the mixed radix of the sizes, is an index on each axis; the strides make an offset of them. An
/// axis along which a tensor is broadcast has stride 0.
struct Strided {
  int rank = 1;
  int64_t size[Shape::kMaxRank] = {1};
  int64_t stride[Shape::kMaxRank] = {0};

  /// The next axis outwards. Axes of size 1 vanish, and one that goes on where the one before ends
  /// becomes part of it: two equal shapes make a single axis, which costs no division below.
  void append(int64_t axis_size, int64_t axis_stride) {
    const int last = rank - 1;
    if (axis_size == 1) return;
    if (size[last] == 1) {
      size[last] = axis_size;
      stride[last] = axis_stride;
    } else if (axis_stride == size[last] * stride[last]) {
      size[last] *= axis_size;
    } else {
      size[rank] = axis_size;
      stride[rank++] = axis_stride;
    }
  }

  __device__ int64_t operator()(int64_t i) const {
    int64_t offset = 0;
    for (int axis = 0; axis < rank - 1; ++axis) {
      offset += i % size[axis] * stride[axis];
      i /= size[axis];
    }
    return offset + i * stride[rank - 1];
  }
};

/// Where element i of `out` is in an x that broadcasts to it.
inline Strided broadcast(const Shape& x, const Shape& out) {
  Strided walk;
  int64_t dense = 1;
  for (int axis = 1; axis <= out.rank(); ++axis) {
    const int64_t x_size = axis <= x.rank() ? x[-axis] : 1;
    walk.append(out[-axis], x_size == 1 ? 0 : dense);
    dense *= x_size;
  }
  return walk;
}

/// Where element i of x, permuted, is in x.
inline Strided permuted(const Shape& x, std::span<const int> axes) {
  Strided walk;
  for (size_t i = axes.size(); i-- > 0;) {
    walk.append(x[axes[i]], x.product(axes[i] + 1, x.rank()));
  }
  return walk;
}

/// The axes of x along which it is reduced to `out`, or those that it keeps.
enum class Axes { kReduced, kKept };
inline Strided axes_of(const Shape& x, const Shape& out, Axes which) {
  Strided walk;
  for (int axis = x.rank() - 1; axis >= 0; --axis) {
    const bool kept = x[axis] == out[axis];
    if (kept == (which == Axes::kKept)) walk.append(x[axis], x.product(axis + 1, x.rank()));
  }
  return walk;
}

}  // namespace mutilde::cuda
