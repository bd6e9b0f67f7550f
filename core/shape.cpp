#include "core/shape.h"

#include <algorithm>

namespace mutilde {

Shape::Shape(std::span<const int64_t> sizes) : rank_(static_cast<int>(sizes.size())) {
  if (sizes.size() > kMaxRank) {
    fail<ShapeError>("shape: {} axes given, at most {} are possible", sizes.size(), kMaxRank);
  }
  std::copy(sizes.begin(), sizes.end(), sizes_.begin());
  check_sizes();
}

void Shape::check_sizes() const {
  int64_t product = 1;
  for (int64_t size : *this) {
    if (size < 0) fail<ShapeError>("shape: negative size {} in {}", size, to_string());
    if (size > 0 && __builtin_mul_overflow(product, size, &product)) {
      fail<ShapeError>("shape: {} has more elements than 64 bits can count", to_string());
    }
  }
}

int64_t Shape::product(int begin, int end) const {
  int64_t product = 1;
  for (int axis = begin; axis < end; ++axis) product *= sizes_[static_cast<size_t>(axis)];
  return product;
}

int64_t Shape::numel() const { return product(0, rank_); }

int Shape::axis_index(int axis) const {
  if (axis < -rank_ || axis >= rank_) {
    fail<ShapeError>("axis {} does not exist in shape {}", axis, to_string());
  }
  return axis < 0 ? axis + rank_ : axis;
}

Shape Shape::with(int axis, int64_t size) const {
  Shape shape = *this;
  shape.sizes_[static_cast<size_t>(axis_index(axis))] = size;
  shape.check_sizes();
  return shape;
}

bool Shape::operator==(const Shape& other) const {
  return std::equal(begin(), end(), other.begin(), other.end());
}

std::string Shape::to_string() const { return fmt::format("[{}]", fmt::join(begin(), end(), ",")); }

Shape broadcast_shapes(const char* op, const Shape& a, const Shape& b) {
  const int rank = std::max(a.rank(), b.rank());
  std::array<int64_t, Shape::kMaxRank> sizes{};
  for (int i = 1; i <= rank; ++i) {  // from the last axis
    const int64_t size_a = i <= a.rank() ? a[-i] : 1;
    const int64_t size_b = i <= b.rank() ? b[-i] : 1;
    if (size_a != size_b && size_a != 1 && size_b != 1) {
      fail<ShapeError>("{}: shapes {} and {} do not broadcast", op, a, b);
    }
    sizes[static_cast<size_t>(rank - i)] = size_a == 1 ? size_b : size_a;
  }
  return Shape(std::span<const int64_t>(sizes.data(), static_cast<size_t>(rank)));
}

}  // namespace mutilde
