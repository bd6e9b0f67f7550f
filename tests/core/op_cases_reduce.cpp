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

}  // namespace mutilde
