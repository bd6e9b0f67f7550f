// Shape: the sizes of a dense, row-major tensor, outermost axis first.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "core/error.h"

namespace mutilde {

class Shape {
 public:
  static constexpr int kMaxRank = 6;

  Shape() = default;  // rank 0: a scalar, one element
  Shape(std::initializer_list<int64_t> sizes)
      : Shape(std::span<const int64_t>(sizes.begin(), sizes.size())) {}
  /// Throws ShapeError for a negative size, a rank over kMaxRank, or sizes whose product (without
  /// those that are 0) is 2^63 or more: neither numel() nor any product() overflows.
  explicit Shape(std::span<const int64_t> sizes);

  int rank() const { return rank_; }
  /// The number of elements; 1 for a scalar.
  int64_t numel() const;
  /// Size of an axis; negative axes count from the end. Throws ShapeError if there is no such axis.
  int64_t operator[](int axis) const { return sizes_[static_cast<size_t>(axis_index(axis))]; }
  /// The same shape with one axis of another size. Throws ShapeError as the constructor does.
  Shape with(int axis, int64_t size) const;
  /// Maps -rank..rank-1 to 0..rank-1. Throws ShapeError outside.
  int axis_index(int axis) const;
  /// Product of the sizes of axes [begin, end).
  int64_t product(int begin, int end) const;

  const int64_t* begin() const { return sizes_.data(); }
  const int64_t* end() const { return sizes_.data() + rank_; }
  bool operator==(const Shape& other) const;
  std::string to_string() const;  // "[8,32,32,3]"

 private:
  void check_sizes() const;

  std::array<int64_t, kMaxRank> sizes_{};
  int rank_ = 0;
};

/// The shape that both broadcast to (aligned at the last axis, sizes equal or 1).
/// Throws ShapeError that names `op` and both shapes.
Shape broadcast_shapes(const char* op, const Shape& a, const Shape& b);

}  // namespace mutilde

template <>
struct fmt::formatter<mutilde::Shape> : fmt::formatter<std::string> {
  template <class Context>
  auto format(const mutilde::Shape& shape, Context& context) const {
    return fmt::formatter<std::string>::format(shape.to_string(), context);
  }
};
