#include "core/tensor.h"

#include <cstring>
#include <numeric>
#include <utility>

#include "core/autograd.h"

namespace mutilde {

struct Storage {
  Storage(size_t size, Device where)
      : bytes(size), device(where), data(backend(where).allocate(size)) {}
  ~Storage() { backend(device).release(data, bytes); }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  size_t bytes;
  Device device;
  void* data;
  Tensor short_copy;  // or undefined
};

Tensor Tensor::empty(const Shape& shape, DType dtype, Device device) {
  Tensor tensor;
  tensor.shape_ = shape;
  tensor.dtype_ = dtype;
  size_t bytes = 0;
  if (__builtin_mul_overflow(static_cast<size_t>(shape.numel()), size_of(dtype), &bytes)) {
    fail<ShapeError>("Tensor::empty: the bytes of {} {} are more than 64 bits can count",
                     name_of(dtype), shape);
  }
  tensor.storage_ = std::make_shared<Storage>(bytes, device);
  return tensor;
}

Tensor Tensor::full(const Shape& shape, double value, DType dtype, Device device) {
  Tensor tensor = empty(shape, dtype, device);
  backend(device).fill(value, tensor);
  return tensor;
}

Tensor Tensor::zeros(const Shape& shape, DType dtype, Device device) {
  return full(shape, 0.0, dtype, device);
}

template <class T>
Tensor Tensor::from(const Shape& shape, const std::vector<T>& values) {
  if (static_cast<int64_t>(values.size()) != shape.numel()) {
    fail<ShapeError>("Tensor::from: {} values given, shape {} has {} elements", values.size(),
                     shape, shape.numel());
  }
  Tensor tensor = empty(shape, dtype_of<T>());
  if (!values.empty()) std::memcpy(tensor.raw(), values.data(), values.size() * sizeof(T));
  return tensor;
}

Tensor Tensor::arange(int64_t n) {
  const Tensor tensor = empty({n}, DType::kInt64);
  const std::span<int64_t> values = tensor.values<int64_t>();
  std::iota(values.begin(), values.end(), int64_t{0});
  return tensor;
}

Device Tensor::device() const { return defined() ? storage_->device : Device{}; }

void* Tensor::raw() const {
  if (!defined()) return nullptr;
  return static_cast<char*>(storage_->data) + static_cast<size_t>(offset_) * size_of(dtype_);
}

template <class T>
T* Tensor::data() const {
  if (!defined()) fail<Error>("Tensor::data: the tensor is undefined");
  if (dtype_ != dtype_of<T>()) {
    fail<DTypeError>("Tensor::data: {} asked, the tensor holds {}", name_of(dtype_of<T>()),
                     name_of(dtype_));
  }
  if (device().type != DeviceType::kCpu) {
    fail<Error>("Tensor::data: the tensor is on {}; move it with to(Device::cpu())",
                device().to_string());
  }
  return static_cast<T*>(raw());
}

template <class T>
std::vector<T> Tensor::to_vector() const {
  if (device().type != DeviceType::kCpu) return detach().to(Device::cpu()).to_vector<T>();
  if (dtype_ != dtype_of<T>()) {
    const Tensor converted = detach().to(dtype_of<T>());
    return converted.to_vector<T>();
  }
  const std::span<T> elements = values<T>();
  return {elements.begin(), elements.end()};
}

double Tensor::item() const {
  if (numel() != 1) fail<ShapeError>("Tensor::item: one element expected, shape is {}", shape_);
  return to_vector<double>()[0];
}

Tensor Tensor::to(Device target) const {
  if (target == device()) return *this;
  const Device here = device();
  Tensor moved = empty(shape_, dtype_, target);
  if (target.type == DeviceType::kCpu) {
    backend(here).copy_to_host(raw(), moved.raw(), bytes());
  } else if (here.type == DeviceType::kCpu) {
    backend(target).copy_from_host(raw(), moved.raw(), bytes());
  } else {
    fail<Error>("Tensor::to: {} to {} goes through the CPU", here.to_string(), target.to_string());
  }
  return record("to", moved, {*this}, [here](const Tensor& cotangent) -> std::vector<Tensor> {
    return {cotangent.to(here)};
  });
}

Tensor Tensor::detach() const {
  Tensor tensor = *this;
  tensor.node_ = nullptr;
  return tensor;
}

Tensor Tensor::clone() const {
  Tensor copy = empty(shape_, dtype_, device());
  backend(*this).copy(raw(), copy.raw(), bytes());
  return copy;
}

void Tensor::copy_(const Tensor& from) const {
  if (!(from.shape() == shape_) || from.dtype() != dtype_) {
    fail<ShapeError>("Tensor::copy_: {} {} given, {} {} expected", name_of(from.dtype()),
                     from.shape(), name_of(dtype_), shape_);
  }
  const Tensor local = from.detach().to(device());
  backend(*this).copy(local.raw(), raw(), bytes());
  storage_->short_copy = {};
}

Tensor Tensor::short_copy() const {
  const Tensor& kept = storage_->short_copy;
  return bytes() == storage_->bytes && kept.defined() ? view_of(kept, shape_, 0) : Tensor{};
}

Tensor Tensor::shortened(DType type) const {
  if (dtype_ == type) return detach();
  const Tensor kept = short_copy();
  if (kept.defined() && kept.dtype() == type) return kept;
  const NoGrad no_grad;
  const Tensor copy = detach().to(type);
  if (bytes() == storage_->bytes) storage_->short_copy = copy;  // of a part nothing is kept
  return copy;
}

Tensor& Tensor::set_requires_grad(bool wanted) {
  if (!wanted) {
    node_ = nullptr;
  } else if (node_ != nullptr) {
    if (!node_->is_leaf()) {
      fail<AutogradError>("set_requires_grad: the tensor is the result of '{}'; detach() it first",
                          node_->op);
    }
  } else {
    if (!is_floating(dtype_)) {
      fail<DTypeError>("set_requires_grad: a floating dtype expected, the tensor holds {}",
                       name_of(dtype_));
    }
    node_ = std::make_shared<Node>();
    node_->shape = shape_;
    node_->dtype = dtype_;
  }
  return *this;
}

Tensor Tensor::grad() const { return node_ ? node_->grad : Tensor{}; }

void Tensor::set_grad(const Tensor& grad) const {
  if (node_ == nullptr || !node_->is_leaf()) fail<AutogradError>("set_grad: the tensor is no leaf");
  node_->grad = grad;
}

void Tensor::backward() const { mutilde::backward(*this); }
void Tensor::backward(const Tensor& cotangent) const { mutilde::backward(*this, cotangent); }

Tensor view_of(const Tensor& x, const Shape& shape, int64_t offset) {
  Tensor view = x.detach();
  view.shape_ = shape;
  view.offset_ += offset;
  return view;
}

#define MUTILDE_INSTANTIATE(T)                                          \
  template Tensor Tensor::from<T>(const Shape&, const std::vector<T>&); \
  template T* Tensor::data<T>() const;                                  \
  template std::vector<T> Tensor::to_vector<T>() const;
MUTILDE_INSTANTIATE(float)
MUTILDE_INSTANTIATE(double)
MUTILDE_INSTANTIATE(int32_t)
MUTILDE_INSTANTIATE(int64_t)
MUTILDE_INSTANTIATE(uint8_t)
#undef MUTILDE_INSTANTIATE
template BFloat16* Tensor::data<BFloat16>() const;
template Float16* Tensor::data<Float16>() const;

}  // namespace mutilde
