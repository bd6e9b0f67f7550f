#include <algorithm>
#include <cmath>
#include <limits>

#include "core/op_cases.h"
#include "core/ops/ops.h"

namespace mutilde {

namespace {

struct Reduction {
  std::string name;
  Shape shape;
  std::vector<int> axes;
  bool keep_axes;
  Shape kept;  // the result's shape with reduced axes of size 1
  Shape out;
};

// Walks over every element and adds it (or compares it) where it belongs.
Array reduce(const Array& x, const Reduction& reduction, bool is_max) {
  const double start = is_max ? -std::numeric_limits<double>::infinity() : 0;
  // An empty batch changes the first size of the results that keep it.
  Shape kept = reduction.kept, result = reduction.out;
  if (x.size(0) == 0 && kept[0] != 1) kept = kept.with(0, 0), result = result.with(0, 0);
  Array out(result);
  std::fill(out.values.begin(), out.values.end(), start);
  for (int64_t i = 0; i < x.numel(); ++i) {
    int64_t rest = i, index = 0, stride = 1;
    for (int axis = x.shape.rank() - 1; axis >= 0; --axis) {
      if (kept[axis] != 1) index += rest % x.size(axis) * stride;
      rest /= x.size(axis);
      stride *= kept[axis];
    }
    out[index] = is_max ? std::max(out[index], x[i]) : out[index] + x[i];
  }
  return out;
}

const std::vector<Reduction>& reductions() {
  static const std::vector<Reduction> kReductions = {
      {"All", {3, 4, 5}, {}, false, {1, 1, 1}, {}},
      {"AllKept", {3, 4, 5}, {}, true, {1, 1, 1}, {1, 1, 1}},
      {"LastAxis", {3, 4, 5}, {-1}, false, {3, 4, 1}, {3, 4}},
      {"MiddleAxisKept", {3, 4, 5}, {1}, true, {3, 1, 5}, {3, 1, 5}},
      {"FirstAxis", {3, 4, 5}, {0}, false, {1, 4, 5}, {4, 5}},
      {"OuterAxes", {3, 4, 5}, {2, 0}, false, {1, 4, 1}, {4}},
      {"PixelsOfImages", {2, 5, 3, 7}, {1, 2}, false, {2, 1, 1, 7}, {2, 7}},
      {"AxisOfOne", {3, 1, 5}, {1}, false, {3, 1, 5}, {3, 5}},
      {"LongRow", {2, 1027}, {1}, false, {2, 1}, {2}},
      {"ToManyChannels", {37, 67}, {0}, false, {1, 67}, {67}}};
  return kReductions;
}

// How many elements go into one result.
double count_of(const Reduction& r) {
  return static_cast<double>(r.shape.numel()) / static_cast<double>(r.kept.numel());
}

OpCase moves(const std::string& name, const Tensors& inputs,
             std::function<Tensor(const Tensors&)> op,
             std::function<Array(const Arrays&)> reference) {
  OpCase row{
      .name = name, .inputs = inputs, .op = std::move(op), .reference = std::move(reference)};
  for (size_t i = 0; i < inputs.size(); ++i) row.batched.push_back(i);
  return row;
}

}  // namespace

std::vector<OpCase> reduce_cases() {
  std::vector<OpCase> rows;
  for (const Reduction& r : reductions()) {
    rows.push_back({.name = "Sum" + r.name,
                    .inputs = {uniform(r.shape)},
                    .op = [r](const Tensors& in) { return sum(in[0], r.axes, r.keep_axes); },
                    .reference = [r](const Arrays& in) { return reduce(in[0], r, false); },
                    .terms = count_of(r),
                    .batched = {0}});
    rows.push_back({.name = "Mean" + r.name,
                    .inputs = {uniform(r.shape)},
                    .op = [r](const Tensors& in) { return mean(in[0], r.axes, r.keep_axes); },
                    .reference =
                        [r](const Arrays& in) {
                          Array out = reduce(in[0], r, false);
                          for (double& value : out.values) value /= count_of(r);
                          return out;
                        },
                    .terms = count_of(r)});
    rows.push_back({.name = "Max" + r.name,
                    .inputs = {all_different(r.shape)},
                    .op = [r](const Tensors& in) { return max(in[0], r.axes, r.keep_axes); },
                    .reference = [r](const Arrays& in) { return reduce(in[0], r, true); }});
  }
  rows.push_back({.name = "SumOfAScalar",
                  .inputs = {uniform({})},
                  .op = [](const Tensors& in) { return sum(in[0]); },
                  .reference = [](const Arrays& in) { return in[0]; }});
  rows.push_back({.name = "MeanFlat",
                  .inputs = {uniform({3, 2, 5, 2})},
                  .op = [](const Tensors& in) { return mean_flat(in[0]); },
                  .reference =
                      [](const Arrays& in) {
                        Array out({in[0].size(0)});
                        for (int64_t i = 0; i < in[0].numel(); ++i) out[i / 20] += in[0][i] / 20;
                        return out;
                      },
                  .terms = 20,
                  .batched = {0}});
  rows.push_back({.name = "MeanSquaredError",
                  .inputs = {uniform({3, 7}, -2, 2, 1), uniform({3, 7}, -2, 2, 2)},
                  .op = [](const Tensors& in) { return mean_squared_error(in[0], in[1]); },
                  .reference =
                      [](const Arrays& in) {
                        Array out(Shape{});
                        for (int64_t i = 0; i < 21; ++i) {
                          out[0] += std::pow(in[0][i] - in[1][i], 2) / 21;
                        }
                        return out;
                      },
                  .terms = 21});
  return rows;
}

std::vector<OpCase> layout_cases() {
  const Tensor a = uniform({3, 2, 5}, -2, 2, 1), b = uniform({3, 2, 1}, -2, 2, 2);
  const Tensor c = uniform({3, 2, 4}, -2, 2, 3);
  std::vector<OpCase> rows = {
      moves(
          "Reshape", {a},
          [](const Tensors& in) {
            return in[0].reshape({in[0].size(0) * 5, 2});
          },
          [](const Arrays& in) {
            Array out({in[0].size(0) * 5, 2});
            out.values = in[0].values;
            return out;
          }),
      moves(
          "Permute", {uniform({2, 3, 4, 5})},
          [](const Tensors& in) {
            return permute(in[0], {0, 3, 1, 2});
          },
          [](const Arrays& in) {
            Array out({in[0].size(0), 5, 3, 4});
            for (int64_t n = 0; n < out.size(0); ++n) {
              for (int64_t i = 0; i < 3; ++i) {
                for (int64_t j = 0; j < 4; ++j) {
                  for (int64_t k = 0; k < 5; ++k) out(n, k, i, j) = in[0](n, i, j, k);
                }
              }
            }
            return out;
          }),
      moves(
          "PermuteACycle", {uniform({2, 3, 4})},
          [](const Tensors& in) {
            return permute(in[0], {-1, 0, 1});
          },
          [](const Arrays& in) {
            Array out({4, in[0].size(0), 3});
            for (int64_t i = 0; i < in[0].size(0); ++i) {
              for (int64_t j = 0; j < 3; ++j) {
                for (int64_t k = 0; k < 4; ++k) out(k, i, j) = in[0](i, j, k);
              }
            }
            return out;
          }),
      moves(
          "Concat", {a, b, c}, [](const Tensors& in) { return concat(in); },
          [](const Arrays& in) {
            Array out({in[0].size(0), 2, 10});
            for (int64_t i = 0; i < out.size(0); ++i) {
              for (int64_t j = 0; j < 2; ++j) {
                for (int64_t k = 0; k < 5; ++k) out(i, j, k) = in[0](i, j, k);
                out(i, j, 5) = in[1](i, j, 0);
                for (int64_t k = 0; k < 4; ++k) out(i, j, 6 + k) = in[2](i, j, k);
              }
            }
            return out;
          }),
      moves(
          "SliceChannels", {a}, [](const Tensors& in) { return slice_channels(in[0], 1, 4); },
          [](const Arrays& in) {
            Array out({in[0].size(0), 2, 3});
            for (int64_t i = 0; i < out.size(0); ++i) {
              for (int64_t j = 0; j < 2; ++j) {
                for (int64_t k = 0; k < 3; ++k) out(i, j, k) = in[0](i, j, k + 1);
              }
            }
            return out;
          }),
      moves(
          "Split", {c},
          [](const Tensors& in) {
            const Tensors halves = split(in[0], 2);
            return halves[1] - 2.0 * halves[0];
          },
          [](const Arrays& in) {
            Array out({in[0].size(0), 2, 2});
            for (int64_t i = 0; i < out.size(0); ++i) {
              for (int64_t j = 0; j < 2; ++j) {
                for (int64_t k = 0; k < 2; ++k)
                  out(i, j, k) = in[0](i, j, k + 2) - 2 * in[0](i, j, k);
              }
            }
            return out;
          }),
      moves(
          "BroadcastTo", {uniform({3, 1, 5})},
          [](const Tensors& in) {
            const int64_t rows_of_x = in[0].size(0);
            return broadcast_to(in[0], {2, rows_of_x, 4, 5});
          },
          [](const Arrays& in) {
            Array out({2, in[0].size(0), 4, 5});
            for (int64_t i = 0; i < out.numel(); ++i) out[i] = broadcast_at(in[0], out.shape, i);
            return out;
          })};
  rows.push_back({.name = "Slice",
                  .inputs = {uniform({5, 2, 3})},
                  .op = [](const Tensors& in) { return in[0].slice(1, 4); },
                  .reference =
                      [](const Arrays& in) {
                        Array out({3, 2, 3});
                        for (int64_t i = 0; i < 18; ++i) out[i] = in[0][6 + i];
                        return out;
                      }});
  return rows;
}

}  // namespace mutilde
