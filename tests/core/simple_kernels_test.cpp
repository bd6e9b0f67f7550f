// Resampling, tables, dropout and AdamW against the plainest loop that does
// the same, in float and double.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/kernel_testing.h"
#include "core/random.h"

namespace mutilde {
namespace {

using namespace testing_kernels;

template <class T>
class SimpleKernels : public FloatKernels<T> {};
TYPED_TEST_SUITE(SimpleKernels, FloatTypes);

Tensor random_indices(const Shape& shape, int64_t high) {
  return Generator(1).integers(shape, high);
}

TYPED_TEST(SimpleKernels, Resampling) {
  for (const Shape& shape : {Shape{2, 3, 5, 7}, Shape{1, 1, 1, 1}, Shape{3, 8, 8, 33},
                             Shape{0, 2, 2, 3}, Shape{2, 40, 41, 3}}) {
    const int64_t N = shape[0], H = shape[1], W = shape[2], C = shape[3];
    for (int64_t factor : {1, 2, 3}) {
      SCOPED_TRACE(fmt::format("{} by {}", shape, factor));
      const Tensor small = random<TypeParam>(shape);
      const Shape large_shape{N, H * factor, W * factor, C};
      const Tensor large = random<TypeParam>(large_shape);
      std::vector<double> up, pooled(static_cast<size_t>(shape.numel()));
      for (int64_t i = 0; i < large_shape.numel(); ++i) {
        const Index at = index_of(i, large_shape);
        const int64_t from = element_at({at[0], at[1] / factor, at[2] / factor, at[3]}, shape);
        up.push_back(0.5 * static_cast<double>(small.template data<TypeParam>()[from]));
        pooled[static_cast<size_t>(from)] +=
            static_cast<double>(large.template data<TypeParam>()[i]) / 4;
      }
      expect_close<TypeParam>(
          run(large_shape, this->kType,
              [&](const Tensor& out) { cpu().upsample_nearest(small, factor, 0.5, out); }),
          up, 0);
      // Nine additions of numbers below 2.
      expect_close<TypeParam>(
          run(shape, this->kType,
              [&](const Tensor& out) { cpu().sum_pool(large, factor, 0.25, out); }),
          pooled, 9);
    }
  }
}

/// The weight of entry `from` of n in sample `to` of m.
double bilinear_weight(int64_t from, int64_t n, int64_t to, int64_t m) {
  const double size = static_cast<double>(n);
  double position = (static_cast<double>(to) + 0.5) * size / static_cast<double>(m) - 0.5;
  position = std::clamp(position, 0.0, size - 1);
  return std::max(0.0, 1 - std::abs(position - static_cast<double>(from)));
}

TYPED_TEST(SimpleKernels, ResizeBilinearIsAMatrixAndItsBackwardTheTranspose) {
  struct Case {
    Shape x, out;
  };
  for (const auto& [shape, out_shape] :
       {Case{{2, 4, 5, 3}, {2, 8, 10, 3}}, Case{{1, 9, 7, 2}, {1, 4, 3, 2}},
        Case{{3, 1, 1, 5}, {3, 4, 4, 5}}, Case{{2, 5, 3, 4}, {2, 7, 2, 4}},
        Case{{0, 4, 4, 3}, {0, 8, 8, 3}}}) {
    SCOPED_TRACE(fmt::format("{} -> {}", shape, out_shape));
    const Tensor x = random<TypeParam>(shape), dout = random<TypeParam>(out_shape);
    std::vector<double> expected(static_cast<size_t>(out_shape.numel()));
    std::vector<double> expected_dx(static_cast<size_t>(shape.numel()));
    for (int64_t o = 0; o < out_shape.numel(); ++o) {
      for (int64_t i = 0; i < shape.numel(); ++i) {
        const Index to = index_of(o, out_shape), from = index_of(i, shape);
        if (to[0] != from[0] || to[3] != from[3]) continue;
        const double weight = bilinear_weight(from[1], shape[1], to[1], out_shape[1]) *
                              bilinear_weight(from[2], shape[2], to[2], out_shape[2]);
        expected[static_cast<size_t>(o)] +=
            weight * static_cast<double>(x.template data<TypeParam>()[i]);
        expected_dx[static_cast<size_t>(i)] +=
            weight * static_cast<double>(dout.template data<TypeParam>()[o]);
      }
    }
    expect_close<TypeParam>(
        run(out_shape, this->kType, [&](const Tensor& out) { cpu().resize_bilinear(x, out); }),
        expected, 8);
    expect_close<TypeParam>(
        run(shape, this->kType,
            [&](const Tensor& out) { cpu().resize_bilinear_backward(dout, out); }),
        expected_dx, 32);  // up to 16 terms an element
  }
}

TYPED_TEST(SimpleKernels, EmbeddingAndItsBackward) {
  for (int64_t E : {1, 5, 64, 1030}) {
    for (int64_t n : {0, 1, 37}) {
      const int64_t V = 11;
      const Tensor weight = random<TypeParam>({V, E}), index = random_indices({n}, V);
      const Tensor dout = random<TypeParam>({n, E});
      const Tensor out = run({n, E}, this->kType,
                             [&](const Tensor& result) { cpu().embedding(weight, index, result); });
      const Tensor dweight = run({V, E}, this->kType, [&](const Tensor& result) {
        cpu().embedding_backward(dout, index, result);
      });
      std::vector<double> expected(static_cast<size_t>(V * E));
      for (int64_t i = 0; i < n * E; ++i) {
        const int64_t row = index.data<int64_t>()[i / E];
        ASSERT_EQ(out.template data<TypeParam>()[i],
                  weight.template data<TypeParam>()[row * E + i % E]);
        expected[static_cast<size_t>(row * E + i % E)] +=
            static_cast<double>(dout.template data<TypeParam>()[i]);
      }
      expect_close<TypeParam>(dweight, expected, 2 * 37);
    }
  }
}

TYPED_TEST(SimpleKernels, DropoutIsZeroOrScaled) {
  const Tensor x = random<TypeParam>({40'961}, 1, 2);
  const Tensor out = run(x.shape(), this->kType, [&](const Tensor& result) {
    cpu().dropout(x, 0.25, {3, 1, 12}, result);
  });
  int64_t kept = 0;
  for (int64_t i = 0; i < x.numel(); ++i) {
    const TypeParam value = out.template data<TypeParam>()[i];
    if (value == TypeParam{0}) continue;
    ++kept;
    ASSERT_NEAR(value, x.template data<TypeParam>()[i] / TypeParam{0.75},
                4 * std::numeric_limits<TypeParam>::epsilon());
  }
  EXPECT_NEAR(static_cast<double>(kept) / 40'961, 0.75, 4.9 * std::sqrt(0.25 * 0.75 / 40'961));
}

TYPED_TEST(SimpleKernels, AdamWFollowsItsDefinition) {
  const std::vector<double> rates = {0.9, 0.9999};
  for (int64_t n : {0, 1, 1000, 20'011}) {
    AdamWStep step{.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.99, .adam_eps = 1e-8, .weight_decay = 0.1};
    const Tensor start = random<TypeParam>({n});
    std::vector<Tensor> grads;
    for (int i = 0; i < 3; ++i) grads.push_back(random<TypeParam>({n}));
    grads.push_back({});  // a step without a gradient moves the averages alone

    // One tensor holds everything that changes: parameter, moments, averages.
    const Tensor state = run({5, n}, this->kType, [&](const Tensor& out) {
      std::vector<Tensor> rows;
      for (int i = 0; i < 5; ++i) rows.push_back(out.slice(i, i + 1).reshape({n}));
      cpu().fill(0, rows[1]);
      cpu().fill(0, rows[2]);
      for (int i : {0, 3, 4}) rows[static_cast<size_t>(i)].copy_(start);
      const std::vector<View> ema = {rows[3], rows[4]};
      AdamWStep now = step;
      for (const Tensor& grad : grads) {
        const AdamWBuffers buffers{rows[0], rows[1], rows[2],
                                   grad.defined() ? ConstView(grad) : ConstView{}, ema};
        cpu().adamw({&buffers, 1}, now, rates);
        ++now.step;
      }
    });

    std::vector<double> expected(static_cast<size_t>(5 * n));
    for (int64_t i = 0; i < n; ++i) {
      double p = static_cast<double>(start.template data<TypeParam>()[i]), m = 0, v = 0;
      std::vector<double> average = {p, p};
      for (size_t t = 1; t <= grads.size(); ++t) {
        if (grads[t - 1].defined()) {
          const double g = static_cast<double>(grads[t - 1].template data<TypeParam>()[i]);
          p -= step.lr * step.weight_decay * p;
          m = step.beta1 * m + (1 - step.beta1) * g;
          v = step.beta2 * v + (1 - step.beta2) * g * g;
          const double m_hat = m / (1 - std::pow(step.beta1, t)),
                       v_hat = v / (1 - std::pow(step.beta2, t));
          p -= step.lr * m_hat / (std::sqrt(v_hat) + step.adam_eps);
        }
        for (size_t e = 0; e < 2; ++e) average[e] = rates[e] * average[e] + (1 - rates[e]) * p;
      }
      const double row[5] = {p, m, v, average[0], average[1]};
      for (int64_t r = 0; r < 5; ++r) expected[static_cast<size_t>(r * n + i)] = row[r];
    }
    expect_close<TypeParam>(state, expected, 16);  // four steps of a few roundings each
  }
}

TYPED_TEST(SimpleKernels, AdamWMovesAllParametersUnlessTheyAreToStay) {
  const double inf = std::numeric_limits<double>::infinity();
  const auto moved = [&](double only_if_finite, double grad_scale, double grad_factor) {
    std::mt19937 engine(5);
    std::vector<Tensor> all;  // two parameters, each with its moments and its gradient
    for (const int64_t n : {3, 2000}) {
      for (int i = 0; i < 4; ++i) {
        all.push_back(Tensor::empty({n}, this->kType));
        for (TypeParam& value : all.back().template values<TypeParam>())
          value = std::generate_canonical<TypeParam, 24>(engine);
      }
      for (TypeParam& value : all.back().template values<TypeParam>())
        value *= static_cast<TypeParam>(grad_factor);
    }
    const AdamWBuffers buffers[] = {{all[0], all[1], all[2], all[3], {}},
                                    {all[4], all[5], all[6], all[7], {}}};
    const Tensor flag = Tensor::full({}, only_if_finite, DType::kFloat64);
    cpu().adamw(buffers, {.lr = 0.1, .grad_scale = grad_scale, .only_if_finite = flag}, {});
    std::vector<double> values;
    for (const Tensor& x : {all[0], all[1], all[2], all[4], all[5], all[6]}) {
      const std::vector<double> more = x.template to_vector<double>();
      values.insert(values.end(), more.begin(), more.end());
    }
    return values;
  };
  const std::vector<double> stayed = moved(inf, 1, 1);
  EXPECT_EQ(moved(std::nan(""), 1, 1), stayed);
  const std::vector<double> went = moved(1, 1, 1);
  for (size_t i = 0; i < went.size(); ++i) ASSERT_NE(went[i], stayed[i]) << i;
  EXPECT_EQ(moved(1, 0.25, 4), went);  // powers of two round nothing
}

// The plain loop rounds 20,018 times, the kernel's lanes some 300 times, by 2^-53 of the sum.
TYPED_TEST(SimpleKernels, SumOfSquaresIsOverAllTensors) {
  const Tensor a = random<TypeParam>({20'011}), b = random<TypeParam>({7}),
               empty = Tensor::empty({0}, this->kType);
  const Tensor sum = run({}, DType::kFloat64, [&](const Tensor& out) {
    const ConstView tensors[] = {a, empty, b};
    cpu().sum_of_squares(tensors, out);
  });
  double expected = 0;
  for (const Tensor& x : {a, b})
    for (const double value : x.template to_vector<double>()) expected += value * value;
  EXPECT_NEAR(sum.item(), expected, 20'400 * 0x1p-53 * expected);
  EXPECT_EQ(
      run({}, DType::kFloat64, [](const Tensor& out) { cpu().sum_of_squares({}, out); }).item(), 0);
}

// A hundred thousand steps at 0.9999, as long as a training run. Each step rounds the average, of
// size 1, by at most 2^-25 where it lies below 1 and 2^-24 above: half a unit in the last place.
// Errors of random sign that fade with the rate add up to 2^-24 / sqrt(3) * sqrt(1 / (2 * 1e-4)) =
// 2.4e-6; five times that is not reached by chance. An average whose factors do not sum to 1 is
// wrong by 1.6e-4.
TYPED_TEST(SimpleKernels, AveragesDoNotDriftOverManySteps) {
  constexpr int64_t kSteps = 100'000, n = 16;
  constexpr double kRate = 0.9999;
  const Tensor param = Tensor::full({n}, 1, this->kType), ema = param.clone();
  const Tensor moments = Tensor::zeros({2, n}, this->kType);
  const std::vector<View> emas = {ema};
  const std::vector<double> rates = {kRate};
  const AdamWBuffers buffers{
      param, moments.slice(0, 1).reshape({n}), moments.slice(1, 2).reshape({n}), {}, emas};
  std::vector<double> expected(n, 1.0);
  std::mt19937 engine(3);
  std::uniform_real_distribution<double> noise(0.5, 1.5);
  for (int64_t step = 0; step < kSteps; ++step) {
    for (int64_t i = 0; i < n; ++i) {
      TypeParam& value = param.template data<TypeParam>()[i];
      value = static_cast<TypeParam>(noise(engine));
      double& average = expected[static_cast<size_t>(i)];
      average = kRate * average + (1 - kRate) * static_cast<double>(value);
    }
    cpu().adamw({&buffers, 1}, {}, rates);
  }
  const double tolerance = sizeof(TypeParam) == 4 ? 1.2e-5 : 1e-13;
  for (int64_t i = 0; i < n; ++i) {
    EXPECT_NEAR(static_cast<double>(ema.template data<TypeParam>()[i]),
                expected[static_cast<size_t>(i)], tolerance);
  }
}

}  // namespace
}  // namespace mutilde
