// Sum and max over any axes.
//
// Axes are first merged: neighbours that are both reduced, or both kept, are one. What is left
// alternates, and the reduced ones go one after the other, innermost first, each as a reduction of
// [A, R, B] over R. The shapes that matter (all -> scalar, [N, H, W, C] -> [C], [N, H, W, C] ->
// [N]) need one such pass.
//
// A sum runs over short stretches in T, in vectors, and adds the stretches in double; so its error
// is that of adding some 64 numbers, however long it is. Where stretches begin depends on the
// shapes alone, so that the result does not depend on the number of threads.
#include <array>
#include <limits>
#include <vector>

#include "core/cpu/cpu_backend.h"
#include "core/cpu/parallel.h"

namespace mutilde {
namespace {

constexpr int64_t kLanes = 64;            // columns that are reduced side by side, in registers
constexpr int64_t kStretch = 64;          // rows that are summed before they go to double
constexpr int64_t kTaskElements = 65536;  // of one task
constexpr int64_t kPanel = 1024;          // columns of one task

template <ReduceOp op, class T>
T combine(T a, T b) {
  if constexpr (op == ReduceOp::kSum) return a + b;
  return b > a || b != b ? b : a;  // a NaN wins, and stays
}

template <ReduceOp op, class T>
constexpr T identity() {
  return op == ReduceOp::kSum ? T{0} : -std::numeric_limits<T>::infinity();
}

/// total[j] = combine(total[j], x[0][j], x[1][j], ...) for kLanes
/// columns and at most kStretch rows.
template <ReduceOp op, class T>
void reduce_lanes(const T* x, int64_t rows, int64_t row_stride, double* total) {
  std::array<T, kLanes> lanes;
  lanes.fill(identity<op, T>());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] = combine<op>(lanes[j], x[r * row_stride + j]);
  }
  for (int64_t j = 0; j < kLanes; ++j)
    total[j] = combine<op>(total[j], static_cast<double>(lanes[j]));
}

/// The same for any number of columns.
template <ReduceOp op, class T>
void reduce_columns(const T* x, int64_t rows, int64_t columns, int64_t row_stride, double* total) {
  for (int64_t r = 0; r < rows; r += kStretch) {
    const T* stretch = x + r * row_stride;
    const int64_t count = std::min(kStretch, rows - r);
    int64_t j = 0;
    for (; j + kLanes <= columns; j += kLanes) {
      reduce_lanes<op>(stretch + j, count, row_stride, total + j);
    }
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t rest = j; rest < columns; ++rest) {
        total[rest] = combine<op>(total[rest], static_cast<double>(stretch[i * row_stride + rest]));
      }
    }
  }
}

/// n neighbours, seen as rows of kLanes.
template <ReduceOp op, class T>
double reduce_row(const T* x, int64_t n) {
  std::array<double, kLanes> total;
  total.fill(identity<op, double>());
  const int64_t whole = n / kLanes;
  reduce_columns<op>(x, whole, kLanes, kLanes, total.data());
  reduce_columns<op>(x + whole * kLanes, 1, n - whole * kLanes, kLanes, total.data());
  double result = total[0];
  for (int64_t j = 1; j < kLanes; ++j) result = combine<op>(result, total[j]);
  return result;
}

/// x: [A, R, B] -> out: [A, B].
template <ReduceOp op, class In, class Out>
void reduce_middle(const In* x, int64_t A, int64_t R, int64_t B, Out* out) {
  // One task: some rows of R, a panel of columns of B, one a.
  const int64_t width = std::min(B, kPanel);
  const int64_t rows = std::max(kTaskElements / width / kStretch, int64_t{1}) * kStretch;
  const int64_t chunks = std::max((R + rows - 1) / rows, int64_t{1}),
                panels = (B + width - 1) / width;
  std::vector<double> partial(static_cast<size_t>(A * chunks * B), identity<op, double>());

  const int64_t cost = std::min(R, rows) * width;
  parallel_for(A * chunks * panels, kGrain / (cost + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t panel = task % panels, chunk = task / panels % chunks,
                    a = task / panels / chunks;
      const int64_t column = panel * width, row = chunk * rows;
      const In* from = x + (a * R + row) * B + column;
      const int64_t count = std::min(rows, R - row);
      double* total = partial.data() + (a * chunks + chunk) * B + column;
      if (B == 1) {
        *total = reduce_row<op>(from, count);
      } else {
        reduce_columns<op>(from, count, std::min(width, B - column), B, total);
      }
    }
  });
  parallel_for(A * B, kGrain / chunks + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double* from = partial.data() + i / B * chunks * B + i % B;
      double result = from[0];
      for (int64_t chunk = 1; chunk < chunks; ++chunk)
        result = combine<op>(result, from[chunk * B]);
      out[i] = static_cast<Out>(result);
    }
  });
}

/// One reduction of [A, R, B] over R.
struct Pass {
  int64_t A, R, B;
};

/// What is to be done, innermost axis first.
std::vector<Pass> plan(const Shape& x, const Shape& out) {
  std::vector<Pass> passes;
  int64_t inner = 1;  // kept elements inside of the axis
  for (int axis = x.rank() - 1; axis >= 0;) {
    if (x[axis] == out[axis]) {
      inner *= x[axis--];
      continue;
    }
    int64_t reduced = 1;
    for (; axis >= 0 && (x[axis] != out[axis] || x[axis] == 1); --axis) reduced *= x[axis];
    passes.push_back({x.product(0, axis + 1), reduced, inner});
  }
  if (passes.empty()) passes.push_back({1, 1, x.numel()});  // nothing is reduced: a copy

  // Few columns, as in the gradient of an image's bias, do not fill a vector:
  // several rows side by side do.
  const Pass first = passes.front();
  if (first.B > 1 && first.B < kLanes / 2) {
    int64_t side_by_side = kLanes;
    while (first.R % side_by_side != 0) side_by_side /= 2;
    if (side_by_side > 1 && first.R > side_by_side) {
      passes.front() = {first.A, side_by_side, first.B};
      passes.insert(passes.begin(), {first.A, first.R / side_by_side, side_by_side * first.B});
    }
  }
  return passes;
}

template <ReduceOp op, class T>
void reduce_all(const ConstView& x, const View& out) {
  const std::vector<Pass> passes = plan(x.shape, out.shape);
  std::vector<double> between, next;
  for (size_t i = 0; i < passes.size(); ++i) {
    const Pass& p = passes[i];
    const bool first = i == 0, last = i + 1 == passes.size();
    next.resize(last ? 0 : static_cast<size_t>(p.A * p.B));
    if (first && last) {
      reduce_middle<op>(x.as<T>(), p.A, p.R, p.B, out.as<T>());
    } else if (first) {
      reduce_middle<op>(x.as<T>(), p.A, p.R, p.B, next.data());
    } else if (last) {
      reduce_middle<op>(between.data(), p.A, p.R, p.B, out.as<T>());
    } else {
      reduce_middle<op>(between.data(), p.A, p.R, p.B, next.data());
    }
    std::swap(between, next);
  }
}

/// For each element of x, in order, the element of the reduced tensor that it belongs to.
template <class F>
void for_reduced(const Shape& x, const Shape& reduced, const F& f) {
  std::array<int64_t, Shape::kMaxRank> index{}, stride{};
  int64_t dense = 1;
  for (int axis = x.rank() - 1; axis >= 0; --axis) {
    stride[axis] = reduced[axis] == 1 ? 0 : dense;
    dense *= reduced[axis];
  }
  const int64_t n = x.numel();
  for (int64_t i = 0, offset = 0; i < n; ++i) {
    f(i, offset);
    for (int axis = x.rank() - 1; axis >= 0; --axis) {
      offset += stride[axis];
      if (++index[axis] < x[axis]) break;
      offset -= stride[axis] * x[axis];
      index[axis] = 0;
    }
  }
}

}  // namespace

void CpuBackend::reduce(ReduceOp op, ConstView x, View out) {
  if (out.numel() == 0) return;
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (op == ReduceOp::kSum) return reduce_all<ReduceOp::kSum, T>(x, out);
    reduce_all<ReduceOp::kMax, T>(x, out);
  });
}

// Two plain walks on one thread: no network here takes the gradient of a maximum of anything large.
void CpuBackend::max_backward(ConstView x, ConstView y, ConstView dout, View dx) {
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto attains = [&](int64_t i, int64_t group) {
      const T element = x.as<T>()[i], maximum = y.as<T>()[group];
      return element == maximum || (element != element && maximum != maximum);
    };
    std::vector<int64_t> winners(static_cast<size_t>(y.numel()));
    for_reduced(x.shape, y.shape, [&](int64_t i, int64_t group) {
      if (attains(i, group)) ++winners[static_cast<size_t>(group)];
    });
    for_reduced(x.shape, y.shape, [&](int64_t i, int64_t group) {
      const T share = static_cast<T>(winners[static_cast<size_t>(group)]);
      dx.as<T>()[i] = attains(i, group) ? dout.as<T>()[group] / share : T{0};
    });
  });
}

}  // namespace mutilde
