// The table of ops: a row an op, or an interesting variant of one. ops_test.cpp and
// planted_test.cpp make their tests from it, so that a new op gets all of them with one new row.
#pragma once

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace mutilde {

using Tensors = std::vector<Tensor>;

/// A plain array of doubles for the reference formulas, which share no code with the ops.
struct Array {
  Shape shape;
  std::vector<double> values;

  explicit Array(const Shape& sizes) : shape(sizes), values(static_cast<size_t>(sizes.numel())) {}
  explicit Array(const Tensor& x) : shape(x.shape()), values(x.to_vector<double>()) {}

  int64_t size(int axis) const { return shape[axis]; }
  int64_t numel() const { return shape.numel(); }
  double& operator[](int64_t offset) { return values[static_cast<size_t>(offset)]; }
  double operator[](int64_t offset) const { return values[static_cast<size_t>(offset)]; }
  /// An element by its index: x(n, h, w, c).
  template <class... Index>
  double& operator()(Index... index) {
    return values[offset_of({static_cast<int64_t>(index)...})];
  }
  template <class... Index>
  double operator()(Index... index) const {
    return values[offset_of({static_cast<int64_t>(index)...})];
  }

 private:
  size_t offset_of(std::initializer_list<int64_t> index) const {
    int64_t offset = 0;
    int axis = 0;
    for (const int64_t i : index) offset = offset * shape[axis++] + i;
    return static_cast<size_t>(offset);
  }
};
using Arrays = std::vector<Array>;

struct OpCase {
  std::string name;
  /// float64 (or integers where the op wants them), and off kinks by more
  /// than twice gradcheck's step.
  Tensors inputs = {};
  std::function<Tensor(const Tensors&)> op = {};
  /// The op's formula in double, as loops that follow its definition and nothing else.
  std::function<Array(const Arrays&)> reference = {};
  /// For a fused op: the plain ops that define it.
  std::function<Tensor(const Tensors&)> composition = {};
  /// How round-off grows: the most terms that are summed into an element of the output or of a
  /// gradient (or a larger number where a row says so). Tolerances are proportional to it.
  double terms = 1;
  /// The inputs whose leading axis is the batch; a batch of 0 is tried on them.
  std::vector<size_t> batched = {};
  bool differentiable = true;
};

inline void PrintTo(const OpCase& row, std::ostream* stream) { *stream << row.name; }

/// The table, and its parts by family.
const std::vector<OpCase>& op_cases();
std::vector<OpCase> elementwise_cases();
std::vector<OpCase> reduce_cases();
std::vector<OpCase> layout_cases();
std::vector<OpCase> matmul_cases();
std::vector<OpCase> conv_cases();
std::vector<OpCase> norm_cases();
std::vector<OpCase> attention_cases();
std::vector<OpCase> resample_cases();
std::vector<OpCase> embedding_cases();

/// Float64 values in [low, high), a function of the shape and the seed alone.
Tensor uniform(const Shape& shape, double low = -2, double high = 2, uint64_t seed = 1);
/// The same, at least 0.05 away from each kink: a number where the function jumps or has a corner, so that no finite
/// difference is its derivative.
Tensor uniform_off(const std::vector<double>& kinks, const Shape& shape, double low = -2,
                   double high = 2, uint64_t seed = 1);
/// Shuffled multiples of 0.1: no two elements are equal or near.
Tensor all_different(const Shape& shape, uint64_t seed = 1);

/// Element `offset` of x broadcast to `shape`.
double broadcast_at(const Array& x, const Shape& shape, int64_t offset);

}  // namespace mutilde
