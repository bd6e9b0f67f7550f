// Kernels that move or convert elements, of any dtype.
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/kernel_testing.h"

namespace mutilde {
namespace {

using namespace testing_kernels;

template <class T>
void check_permute(const Shape& shape, const std::vector<int>& axes) {
  SCOPED_TRACE(fmt::format("{} by {}", shape, fmt::join(axes, ",")));
  std::vector<T> values(static_cast<size_t>(shape.numel()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<T>(i % 251);
  const Tensor x = Tensor::from(shape, values);
  std::vector<int64_t> sizes;
  for (int axis : axes) sizes.push_back(shape[axis]);
  const Shape out_shape{std::span<const int64_t>(sizes)};
  const Tensor out =
      run(out_shape, dtype_of<T>(), [&](const Tensor& result) { cpu().permute(x, axes, result); });
  for (int64_t i = 0; i < out_shape.numel(); ++i) {
    const Index to = index_of(i, out_shape);
    Index from(to.size());
    for (size_t k = 0; k < axes.size(); ++k) from[static_cast<size_t>(axes[k])] = to[k];
    ASSERT_EQ(out.data<T>()[i], values[static_cast<size_t>(element_at(from, shape))]) << i;
  }
}

TEST(Layout, PermutesAnyAxesOfAnyType) {
  struct Case {
    Shape shape;
    std::vector<int> axes;
  };
  for (const auto& [shape, axes] :
       {Case{{}, {}}, Case{{5}, {0}}, Case{{3, 4, 5}, {0, 1, 2}}, Case{{70, 33}, {1, 0}},
        Case{{2, 3, 40, 37}, {0, 2, 3, 1}},  // to channels-last
        Case{{2, 40, 37, 3}, {0, 3, 1, 2}},  // and back
        Case{{2, 35, 3, 64}, {0, 2, 1, 3}},  // rows stay whole
        Case{{4, 3, 5, 2, 6}, {4, 0, 3, 1, 2}}, Case{{2, 3, 2, 3, 2, 3}, {5, 4, 3, 2, 1, 0}},
        Case{{1, 7, 1, 9}, {2, 3, 0, 1}}, Case{{1, 1}, {1, 0}}, Case{{0, 3}, {1, 0}}}) {
    check_permute<float>(shape, axes);
    check_permute<double>(shape, axes);
    check_permute<int64_t>(shape, axes);
    check_permute<uint8_t>(shape, axes);
  }
}

TEST(Layout, CopiesASliceOfAnyAxis) {
  const Shape shape{4, 5, 37, 6};
  const Tensor x = random<float>(shape);
  for (int axis = 0; axis < 4; ++axis) {
    for (int64_t count : {int64_t{0}, int64_t{1}, shape[axis] - 1}) {
      const Shape out_shape = shape.with(axis, shape[axis] + 3);
      const Tensor out = run(out_shape, DType::kFloat32, [&](const Tensor& result) {
        cpu().fill(-9, result);
        cpu().copy_slice(x, axis, 1, count, result, 2);
      });
      for (int64_t i = 0; i < out_shape.numel(); ++i) {
        Index index = index_of(i, out_shape);
        int64_t& along = index[static_cast<size_t>(axis)];
        const bool inside = along >= 2 && along < 2 + count;
        along -= 1;
        ASSERT_EQ(out.data<float>()[i], inside ? x.data<float>()[element_at(index, shape)] : -9.0f);
      }
    }
  }
}

TEST(Cast, FillsEveryType) {
  for (DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16,
                      DType::kInt32, DType::kInt64, DType::kUInt8}) {
    for (int64_t n : kSizes) {
      const Tensor x = run({n}, dtype, [](const Tensor& out) { cpu().fill(7, out); });
      EXPECT_EQ(x.to_vector<double>(), std::vector<double>(static_cast<size_t>(n), 7.0))
          << name_of(dtype);
    }
  }
}

TEST(Cast, KeepsWhatEveryTypeHolds) {
  const std::vector<DType> types = {DType::kFloat32, DType::kFloat64, DType::kBFloat16,
                                    DType::kFloat16, DType::kInt32,   DType::kInt64,
                                    DType::kUInt8};
  std::vector<double> values;
  for (int i = 0; i < 1001; ++i) values.push_back(i % 128);
  const Tensor x = Tensor::from<double>({1001}, values);
  for (DType from : types) {
    for (DType to : types) {
      const Tensor first = run({1001}, from, [&](const Tensor& out) { cpu().cast(x, out); });
      const Tensor second = run({1001}, to, [&](const Tensor& out) { cpu().cast(first, out); });
      EXPECT_EQ(second.to_vector<double>(), values) << name_of(from) << " to " << name_of(to);
    }
  }
}

TEST(Cast, ToIntegersTruncatesAndSaturates) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Tensor x = Tensor::from<double>({8}, {1.9, -1.9, 300, -300, 1e30, -1e30, nan, 254.99});
  const Tensor bytes = Tensor::empty({8}, DType::kUInt8), words = Tensor::empty({8}, DType::kInt32);
  cpu().cast(x, bytes);
  EXPECT_EQ(bytes.to_vector<int32_t>(), (std::vector<int>{1, 0, 255, 0, 255, 0, 0, 254}));
  cpu().cast(x, words);
  using Limits = std::numeric_limits<int32_t>;
  EXPECT_EQ(words.to_vector<int32_t>(),
            (std::vector<int32_t>{1, -1, 300, -300, Limits::max(), Limits::min(), 0, 254}));
}

// The upper half of a float32, rounded to the nearest by exact
// arithmetic, ties to an even last bit.
TEST(Cast, BFloat16RoundsToNearestEven) {
  std::vector<float> values = {
      0.0f, -0.0f, 1.0f, 3.3895314e38f, 3.4e38f, 1e-40f, std::numeric_limits<float>::infinity()};
  std::mt19937 engine(5);
  for (int i = 0; i < 20'000; ++i) {
    // Every fourth pattern is a tie.
    const uint32_t bits = i % 4 == 0 ? (static_cast<uint32_t>(engine()) & 0xffff0000) | 0x8000
                                     : static_cast<uint32_t>(engine());
    const float value = std::bit_cast<float>(bits);
    if (!std::isnan(value)) values.push_back(value);
  }
  const int64_t n = static_cast<int64_t>(values.size());
  const Tensor x = Tensor::from<float>({n}, values), half = Tensor::empty({n}, DType::kBFloat16);
  cpu().cast(x, half);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(values[static_cast<size_t>(i)]);
    const uint32_t down = bits >> 16, rest = bits & 0xffff;
    const bool up = rest > 0x8000 || (rest == 0x8000 && down % 2 == 1);
    ASSERT_EQ(half.data<BFloat16>()[i].bits, down + (up ? 1 : 0)) << values[static_cast<size_t>(i)];
  }
  const Tensor bad = Tensor::full({1}, std::numeric_limits<double>::quiet_NaN());
  const Tensor bad_half = Tensor::empty({1}, DType::kBFloat16), back = Tensor::empty({1});
  cpu().cast(bad, bad_half);
  cpu().cast(bad_half, back);
  EXPECT_TRUE(std::isnan(back.item()));
}

/// What a float16's bits stand for, by its definition.
double value_of(unsigned bits) {
  const int exponent = static_cast<int>(bits >> 10 & 0x1f);
  const double fraction = bits & 0x3ff, sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  if (exponent < 31) return sign * std::ldexp(1024 + fraction, exponent - 25);
  return fraction == 0 ? sign * std::numeric_limits<double>::infinity()
                       : std::numeric_limits<double>::quiet_NaN();
}

Float16 rounded(float value) {
  const Tensor x = Tensor::full({1}, value), half = Tensor::empty({1}, DType::kFloat16);
  cpu().cast(x, half);
  return half.data<Float16>()[0];
}

TEST(Cast, EveryFloat16ComesBackAndNansStayNans) {
  const Tensor all = Tensor::empty({1 << 16}, DType::kFloat16), back = Tensor::empty({1 << 16}),
               again = Tensor::empty({1 << 16}, DType::kFloat16);
  for (unsigned bits = 0; bits < 1U << 16; ++bits)
    all.data<Float16>()[bits].bits = static_cast<uint16_t>(bits);
  cpu().cast(all, back);
  cpu().cast(back, again);
  for (unsigned bits = 0; bits < 1U << 16; ++bits) {
    const double value = value_of(bits);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(back.data<float>()[bits])) << bits;
      ASSERT_TRUE(std::isnan(value_of(again.data<Float16>()[bits].bits))) << bits;
    } else {
      ASSERT_EQ(back.data<float>()[bits], value) << bits;
      ASSERT_EQ(again.data<Float16>()[bits].bits, bits);
    }
  }
}

// Between each two neighbours: the middle goes to the one whose last bit is even, the floats beside it to the
// nearer one. The largest float16's neighbour is 65536, and infinity.
TEST(Cast, Float16RoundsToNearestEven) {
  for (unsigned bits = 0; bits < 0x7c00; ++bits) {
    const double next = bits == 0x7bff ? 65536 : value_of(bits + 1);
    const auto middle = static_cast<float>((value_of(bits) + next) / 2);
    ASSERT_EQ(rounded(middle).bits, bits + bits % 2) << bits;
    ASSERT_EQ(rounded(-middle).bits, (bits + bits % 2) | 0x8000U) << bits;
    ASSERT_EQ(rounded(std::nextafter(middle, 0.0F)).bits, bits);
    ASSERT_EQ(rounded(std::nextafter(middle, 1e9F)).bits, bits + 1);
  }
  EXPECT_EQ(rounded(1e-30F).bits, 0);
  EXPECT_EQ(rounded(-0.0F).bits, 0x8000);
  EXPECT_EQ(rounded(1e30F).bits, 0x7c00);
}

}  // namespace
}  // namespace mutilde
