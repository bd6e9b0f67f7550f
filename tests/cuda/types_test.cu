// Vector types, bfloat16 and half, and the functions of one number.
#include <cmath>
#include <cstdint>
#include <limits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include "cuda/launch.h"
#include "tests/cuda/device_array.h"

namespace mutilde::cuda {
namespace {

static_assert(sizeof(float4) == 16 && alignof(float4) == 16);
static_assert(sizeof(float3) == 12 && alignof(float3) == 4);
static_assert(sizeof(int2) == 8 && alignof(int2) == 8);
static_assert(sizeof(double2) == 16 && alignof(double2) == 16);

__global__ void scale_by_fours(const float4* x, float4* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float4 v = __ldg(x + i);
  out[i] = make_float4(2 * v.x, 3 * v.y, 4 * v.z, 5 * v.w);
}

TEST(Float4, LoadsFourNumbersAtOnce) {
  const std::vector<float> x = numbers<float>(4 * 77);
  const DeviceArray<float> in(x);
  DeviceArray<float> out(x.size());
  launch<scale_by_fours>({.grid = 3, .block = 32}, reinterpret_cast<const float4*>(in.data()),
                         reinterpret_cast<float4*>(out.data()), 77);
  const std::vector<float> host = out.to_host();
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(host[i], static_cast<float>(2 + i % 4) * x[i]);
}

/// The value of a format with this many exponent and fraction bits, from the definition.
double decode(unsigned bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const double fraction = bits & ((1U << fraction_bits) - 1);
  const double sign = bits >> (exponent_bits + fraction_bits) & 1 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp(1 + std::ldexp(fraction, -fraction_bits), exponent - bias);
}

/// Every 16-bit pattern decodes as defined and comes back, and what lies between two neighbours
/// goes to the nearer one, in the middle to the even one.
template <class T>
void check_rounding(T (*from_bits)(unsigned short), unsigned short (*to_bits)(T), int exponent_bits,
                    int fraction_bits) {
  const auto round = [&](double x) { return to_bits(T(static_cast<float>(x))); };
  const unsigned infinity = ((1U << exponent_bits) - 1) << fraction_bits;
  for (unsigned bits = 0; bits < 0x8000; ++bits) {
    const double value = decode(bits, exponent_bits, fraction_bits);
    const auto given = static_cast<float>(from_bits(static_cast<unsigned short>(bits)));
    if (bits > infinity) {
      ASSERT_TRUE(std::isnan(given)) << bits;
      ASSERT_TRUE(std::isnan(static_cast<float>(T(given))));
      continue;
    }
    ASSERT_EQ(given, value) << bits;
    ASSERT_EQ(round(value), bits);
    ASSERT_EQ(round(-value), bits | 0x8000);
    if (bits >= infinity) continue;
    // Infinity's neighbour is the power of two that would come next.
    const double next = bits + 1 < infinity ? decode(bits + 1, exponent_bits, fraction_bits)
                                            : std::ldexp(1.0, 1 << (exponent_bits - 1));
    const double middle = value / 2 + next / 2;
    ASSERT_EQ(round(middle), bits % 2 == 0 ? bits : bits + 1) << bits;
    if (static_cast<float>(middle) == 0) continue;
    const float below = std::nextafter(static_cast<float>(middle), 0.0F);
    const float above = std::nextafter(static_cast<float>(middle), INFINITY);
    ASSERT_EQ(round(below), bits);
    ASSERT_EQ(round(above), bits + 1);
  }
}

TEST(Bfloat16, RoundsToNearestEven) {
  check_rounding<__nv_bfloat16>([](unsigned short bits) { return __ushort_as_bfloat16(bits); },
                                [](__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }, 8, 7);
}

TEST(Half, RoundsToNearestEven) {
  check_rounding<__half>([](unsigned short bits) { return __ushort_as_half(bits); },
                         [](__half x) { return __half_as_ushort(x); }, 5, 10);
}

/// out: sums, differences, products, quotients.
template <class T>
__global__ void arithmetic(const float* a, const float* b, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const T x = a[i], y = b[i];
  out[i] = x + y;
  out[n + i] = x - y;
  out[2 * n + i] = x * y;
  out[3 * n + i] = x / y;
}

template <class T>
void check_arithmetic() {
  const int n = 4001;
  const std::vector<float> a = numbers<float>(n, 1), b = numbers<float>(n, 2);
  const DeviceArray<float> in_a(a), in_b(b);
  DeviceArray<float> out(4 * n);
  launch<arithmetic<T>>({.grid = 63, .block = 64}, in_a.data(), in_b.data(), out.data(), n);
  const std::vector<float> host = out.to_host();
  for (int i = 0; i < n; ++i) {
    const double x = static_cast<float>(T(a[i])), y = static_cast<float>(T(b[i]));
    // Rounded from double: its extra bits make the second rounding harmless.
    const auto rounded = [](double value) {
      return static_cast<float>(T(static_cast<float>(value)));
    };
    ASSERT_EQ(host[i], rounded(x + y));
    ASSERT_EQ(host[n + i], rounded(x - y));
    ASSERT_EQ(host[2 * n + i], rounded(x * y));
    ASSERT_EQ(host[3 * n + i], rounded(x / y));
  }
}

TEST(Bfloat16, ArithmeticIsCorrectlyRounded) { check_arithmetic<__nv_bfloat16>(); }
TEST(Half, ArithmeticIsCorrectlyRounded) { check_arithmetic<__half>(); }

__global__ void functions(const float* x, float* out, int n) {
  const int i = threadIdx.x;
  out[i] = rsqrtf(x[i]);
  out[n + i] = __expf(x[i]);
  out[2 * n + i] = __logf(x[i]);
  out[3 * n + i] = __fdividef(1.0F, x[i]);
  out[4 * n + i] = fmaf(x[i], x[i], -1.0F);
  out[5 * n + i] = __saturatef(x[i] - 1.0F);
  out[6 * n + i] = max(x[i], 1.0F) - min(x[i], 1.0F);
}

TEST(FastMath, IsCloseToTheFunctionsThatItStandsFor) {
  const int n = 64;
  std::vector<float> x(n);
  for (int i = 0; i < n; ++i) x[i] = 0.25F + 0.05F * static_cast<float>(i);
  const DeviceArray<float> in(x);
  DeviceArray<float> out(7 * n);
  launch<functions>({.grid = 1, .block = n}, in.data(), out.data(), n);
  const std::vector<float> host = out.to_host();
  for (int i = 0; i < n; ++i) {
    // The programming guide: rsqrtf 2 ulp, __expf 2 + |1.173 x| ulp, __fdividef 2 ulp, __logf an
    // absolute 2^-21.41 in [0.5, 2] and 3 ulp elsewhere; an ulp is at most 2^-23 of the value.
    const double v = x[i], ulp = 0x1p-23;
    EXPECT_NEAR(host[i], 1 / std::sqrt(v), 2 * ulp / std::sqrt(v));
    EXPECT_NEAR(host[n + i], std::exp(v), (2 + 1.173 * v) * ulp * std::exp(v));
    EXPECT_NEAR(host[2 * n + i], std::log(v), 0x1p-21 + 3 * ulp * std::abs(std::log(v)));
    EXPECT_NEAR(host[3 * n + i], 1 / v, 2 * ulp / v);
    EXPECT_EQ(host[4 * n + i], static_cast<float>(v * v - 1));
    EXPECT_EQ(host[5 * n + i], std::min(std::max(x[i] - 1.0F, 0.0F), 1.0F));
    EXPECT_EQ(host[6 * n + i], std::abs(x[i] - 1.0F));
  }
}

__global__ void bit_functions(unsigned x, int* out) {
  out[0] = __popc(x);
  out[1] = __clz(static_cast<int>(x));
  out[2] = __ffs(static_cast<int>(x));
  out[3] = static_cast<int>(__umulhi(x, 0x80000000U));
}

TEST(BitFunctions, CountBits) {
  for (const unsigned x : {0U, 1U, 0x00f0U, 0x80000000U, 0xffffffffU}) {
    DeviceArray<int> out(4);
    launch<bit_functions>({.grid = 1, .block = 1}, x, out.data());
    int ones = 0, highest = -1, lowest = -1;
    for (int i = 0; i < 32; ++i) {
      if ((x >> i & 1) == 0) continue;
      ++ones;
      highest = i;
      if (lowest < 0) lowest = i;
    }
    EXPECT_EQ(out.to_host(),
              (std::vector<int>{ones, 31 - highest, lowest + 1, static_cast<int>(x / 2)}));
  }
}

}  // namespace
}  // namespace mutilde::cuda
