// Broadcasting, reduced to loops over contiguous rows.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

#include "core/cpu/parallel.h"
#include "core/shape.h"

namespace mutilde {

/// Calls body(begin, end) for ranges that cover [0, n). Ranges begin at multiples of 64 elements:
/// threads share no cache line, and the elements left over from whole vectors are
/// the same for any thread count.
template <class Body>
void for_elements(int64_t n, const Body& body) {
  constexpr int64_t kUnit = 64;
  parallel_for((n + kUnit - 1) / kUnit, kGrain / kUnit,
               [&](int64_t begin, int64_t end) { body(begin * kUnit, std::min(end * kUnit, n)); });
}

/// K inputs broadcast to one output, with as few axes as will do: axes of size 1 vanish, and
/// neighbours merge where every input walks through both as through one. Equal shapes become one
/// axis; [C] against [N, H, W, C] becomes [NHW, C]; [N, 1, 1, 1] becomes [N, HWC]. The inner axis
/// of an input then has stride 1, or 0 where it repeats one element.
template <int K>
struct Broadcast {
  using Strides = std::array<int64_t, K>;

  int rank = 0;
  std::array<int64_t, Shape::kMaxRank> sizes{};
  std::array<Strides, Shape::kMaxRank> strides{};

  Broadcast(const std::array<Shape, K>& inputs, const Shape& out) {
    // From the inner axis outwards, so that axis 0 here is the innermost.
    Strides dense;
    dense.fill(1);
    for (int axis = 1; axis <= out.rank(); ++axis) {
      const int64_t size = out[-axis];
      Strides stride{};
      for (int k = 0; k < K; ++k) {
        const int64_t input_size = axis <= inputs[k].rank() ? inputs[k][-axis] : 1;
        stride[k] = input_size == 1 ? 0 : dense[k];
        dense[k] *= input_size;
      }
      if (size != 1) append(size, stride);
    }
    if (rank == 0) append(1, Strides{});
  }

  /// Calls row(offsets, out_offset, count) for stretches of the inner axis that cover the output.
  template <class Row>
  void for_rows(const Row& row) const {
    int64_t n = 1;
    for (int axis = 0; axis < rank; ++axis) n *= sizes[axis];
    for_elements(n, [&](int64_t begin, int64_t end) {
      std::array<int64_t, Shape::kMaxRank> index{};
      Strides offset{};
      for (int64_t axis = 0, rest = begin; axis < rank; rest /= sizes[axis], ++axis) {
        index[axis] = rest % sizes[axis];
        for (int k = 0; k < K; ++k) offset[k] += index[axis] * strides[axis][k];
      }
      for (int64_t i = begin; i < end;) {
        const int64_t count = std::min(sizes[0] - index[0], end - i);
        row(offset, i, count);
        i += count;
        step(index, offset, count);
      }
    });
  }

 private:
  void append(int64_t size, const Strides& stride) {
    bool merges = rank > 0;
    for (int k = 0; k < K && merges; ++k) {
      merges = stride[k] == strides[rank - 1][k] * sizes[rank - 1];
    }
    if (merges) {
      sizes[rank - 1] *= size;
    } else {
      sizes[rank] = size;
      strides[rank++] = stride;
    }
  }

  /// Moves `count` elements along the inner axis, carrying into the outer ones like an odometer.
  void step(std::array<int64_t, Shape::kMaxRank>& index, Strides& offset, int64_t count) const {
    for (int axis = 0; axis < rank; ++axis, count = 1) {
      index[axis] += count;
      for (int k = 0; k < K; ++k) offset[k] += count * strides[axis][k];
      if (index[axis] < sizes[axis]) return;
      for (int k = 0; k < K; ++k) offset[k] -= sizes[axis] * strides[axis][k];
      index[axis] = 0;
    }
  }
};

/// Calls f with an inner stride (0 or 1) as a compile-time constant, so that its loop vectorises.
template <class F>
void with_constant(int64_t stride, const F& f) {
  if (stride == 0) return f(std::integral_constant<int64_t, 0>{});
  f(std::integral_constant<int64_t, 1>{});
}

}  // namespace mutilde
