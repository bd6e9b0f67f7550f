// Tensor: dense, contiguous, row-major; a handle to shared storage.
//
// Copying a Tensor copies the handle. reshape() and slice() of the leading axis are views of the
// same storage; nothing else is, and there are no strides (docs/design.md says why).
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/backend.h"
#include "core/dtype.h"
#include "core/shape.h"

namespace mutilde {

struct Node;     // core/autograd.h
struct Storage;  // bytes from a backend's allocator, freed with the last tensor that uses them

class Tensor {
 public:
  Tensor() = default;  // undefined: no storage, no shape

  // Making tensors. Throws ShapeError if the bytes overflow, OutOfMemoryError if there are too few.
  static Tensor empty(const Shape& shape, DType dtype = DType::kFloat32, Device device = {});
  static Tensor zeros(const Shape& shape, DType dtype = DType::kFloat32, Device device = {});
  static Tensor full(const Shape& shape, double value, DType dtype = DType::kFloat32,
                     Device device = {});
  /// Row-major values on the CPU; T is one of the dtypes' types.
  /// Throws ShapeError on a wrong count.
  template <class T>
  static Tensor from(const Shape& shape, const std::vector<T>& values);
  template <class T>
  static Tensor scalar(T value) {
    return from<T>({}, {value});
  }
  /// 0, 1, ... n - 1 as int64.
  static Tensor arange(int64_t n);

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int64_t size(int axis) const { return shape_[axis]; }
  int rank() const { return shape_.rank(); }
  int64_t numel() const { return shape_.numel(); }
  DType dtype() const { return dtype_; }
  Device device() const;
  size_t bytes() const { return static_cast<size_t>(numel()) * size_of(dtype_); }

  // Reading and writing elements. data<T>() and values<T>() need a CPU
  // tensor of exactly that dtype.
  template <class T>
  T* data() const;
  template <class T>
  std::span<T> values() const {
    return {data<T>(), static_cast<size_t>(numel())};
  }
  /// A copy of the elements, from any device, converted from any dtype as by to(): floating to
  /// integer saturates.
  template <class T>
  std::vector<T> to_vector() const;
  /// The only element, as a double. Throws ShapeError if there is not exactly one.
  double item() const;

  /// Views for kernels. A tensor is a handle, so a const one can be written through.
  operator ConstView() const { return {raw(), dtype_, shape_, nullptr, {}}; }
  operator View() const { return {raw(), dtype_, shape_}; }
  void* raw() const;

  // New tensors from this one. All but detach() and clone() are differentiable ops.
  Tensor reshape(const Shape& shape) const;  // a view of as many elements
  /// A view of rows [begin, end) of the leading axis.
  Tensor slice(int64_t begin, int64_t end) const;
  Tensor to(DType dtype) const;
  Tensor to(Device device) const;
  Tensor detach() const;  // the same data, outside the graph
  Tensor clone() const;   // a copy of the data, outside the graph
  /// Overwrites the elements (same shape and dtype, any device). Not recorded by autograd.
  void copy_(const Tensor& from) const;
  /// A copy in a short type, outside the graph. It is kept with the storage until copy_() changes the elements,
  /// or another type is asked for: a parameter's many products share one. What else writes to a parameter
  /// (AdamW) writes to it too.
  Tensor shortened(DType type) const;
  /// The copy that is kept; undefined if there is none.
  Tensor short_copy() const;
  /// True if no other tensor shares the storage.
  bool unique() const { return storage_.use_count() == 1; }

  // Autograd.
  bool requires_grad() const { return node_ != nullptr; }
  /// True: makes this a leaf whose gradient is wanted. Throws AutogradError for the result of an op
  /// (detach() it first), DTypeError unless the dtype is floating. False: takes this handle out of
  /// the graph.
  Tensor& set_requires_grad(bool wanted);
  /// The accumulated gradient of a leaf; undefined before the first backward().
  Tensor grad() const;
  void set_grad(const Tensor& grad) const;  // an undefined tensor clears it
  /// Accumulates d(contraction of this with the cotangent) into every leaf of the graph and frees
  /// the graph. A scalar needs no cotangent. Throws AutogradError (see autograd.h).
  void backward() const;
  void backward(const Tensor& cotangent) const;

  const std::shared_ptr<Node>& node() const { return node_; }
  void set_node(std::shared_ptr<Node> node) { node_ = std::move(node); }

 private:
  friend Tensor view_of(const Tensor& x, const Shape& shape, int64_t offset);

  std::shared_ptr<Storage> storage_;
  int64_t offset_ = 0;  // elements
  Shape shape_;
  DType dtype_ = DType::kFloat32;
  std::shared_ptr<Node> node_;
};

/// The same storage under another shape, `offset` elements further on, outside the graph.
Tensor view_of(const Tensor& x, const Shape& shape, int64_t offset);

inline Tensor empty_like(const Tensor& x) {
  return Tensor::empty(x.shape(), x.dtype(), x.device());
}
inline Tensor zeros_like(const Tensor& x) {
  return Tensor::zeros(x.shape(), x.dtype(), x.device());
}
inline Backend& backend(const Tensor& x) { return backend(x.device()); }

}  // namespace mutilde
