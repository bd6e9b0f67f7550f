// The kernels of all instruction sets that this program holds and this processor has: each is the
// one it should be, and they agree within rounding.
#include "core/cpu_isa.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/tensor.h"
#include "tests/core/kernel_testing.h"

namespace mutilde {
namespace {

using testing_kernels::random;

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();

std::vector<CpuIsa> isas_here() {
  std::vector<CpuIsa> here;
  for (const CpuIsa& isa : cpu_isas()) {
    if (isa.runs_here) here.push_back(isa);
  }
  return here;
}

/// The results of a kernel on each instruction set, the plain one's first.
template <class Kernel>
std::vector<std::vector<float>> results(const Shape& shape, const Kernel& kernel) {
  std::vector<std::vector<float>> all;
  for (const CpuIsa& isa : isas_here()) {
    const Tensor out = Tensor::zeros(shape);
    kernel(isa.kernels->backend(), out);
    all.push_back(out.to_vector<float>());
  }
  return all;
}

TEST(CpuIsas, EachHasVectorsOfItsWidth) {
  const std::map<std::string, int> bytes = {
      {"plain", 16}, {"avx2", 32}, {"avx512", 64}, {"avx512bf16", 64}};
  for (const CpuIsa& isa : cpu_isas()) {
    const auto expected = bytes.find(isa.name);
    if (expected != bytes.end()) {
      EXPECT_EQ(isa.kernels->vector_bytes, expected->second) << isa.name;
    }
  }
}

TEST(CpuIsas, TheEnvironmentNamesTheOneThatRunsElseItIsTheFastest) {
  const char* name = std::getenv("MUTILDE_ISA");
  EXPECT_STREQ(cpu_isa().name, name != nullptr && *name ? name : isas_here().back().name);
  EXPECT_EQ(&backend(Device::cpu()), &cpu_isa().kernels->backend());
}

TEST(CpuIsas, ANameThatIsNotThereIsRefusedWithThoseThatAre) {
  try {
    find_cpu_isa("mmx");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("'mmx'"));
    for (const CpuIsa& isa : isas_here()) {
      EXPECT_THAT(error.what(), testing::HasSubstr(isa.name));
    }
  }
  for (const CpuIsa& isa : cpu_isas()) {
    if (isa.runs_here) {
      EXPECT_STREQ(find_cpu_isa(isa.name).name, isa.name);
    } else {
      EXPECT_THROW(find_cpu_isa(isa.name), Error) << isa.name;
    }
  }
}

// Each copy of the kernels has type information of its own for the exceptions that it throws.
TEST(CpuIsas, AnExceptionIsCaughtByItsTypeOutsideOfTheKernels) {
  for (const CpuIsa& isa : isas_here()) {
    const Tensor out = Tensor::zeros({3}, DType::kInt32);
    EXPECT_THROW(isa.kernels->backend().fill_uniform({}, out), DTypeError) << isa.name;
  }
}

// A sum of K products in any order, each step rounded once or twice, is within K epsilon / 2 times
// the sum of their absolute values of the exact one (Higham 2002, section 3.1).
TEST(CpuIsas, ProductsAgreeWithinTheRoundingOfTheirSums) {
  const int64_t M = 13, N = 37, K = 300;
  const Tensor a = random<float>({1, M, K}), b = random<float>({1, K, N});
  const auto all = results({1, M, N}, [&](Backend& backend, const Tensor& out) {
    backend.matmul(a, false, b, false, out);
  });
  const auto a_values = a.to_vector<double>(), b_values = b.to_vector<double>();
  for (size_t isa = 1; isa < all.size(); ++isa) {
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t n = 0; n < N; ++n) {
        double size = 0;
        for (int64_t k = 0; k < K; ++k) {
          size += std::abs(a_values[static_cast<size_t>(m * K + k)] *
                           b_values[static_cast<size_t>(k * N + n)]);
        }
        const size_t i = static_cast<size_t>(m * N + n);
        ASSERT_NEAR(all[isa][i], all[0][i], static_cast<double>(K) * kEpsilon * size) << isa;
      }
    }
  }
}

// e^-x within 2 epsilon, and half of one each for the sum, the quotient and the product: 3.5 on
// either side.
TEST(CpuIsas, SiluAgreesWithinSevenEpsilon) {
  const Tensor x = random<float>({1001}, -20, 20);
  const auto all = results(x.shape(), [&](Backend& backend, const Tensor& out) {
    backend.unary(UnaryOp::kSilu, x, out);
  });
  for (size_t isa = 1; isa < all.size(); ++isa) {
    for (size_t i = 0; i < all[0].size(); ++i) {
      ASSERT_NEAR(all[isa][i], all[0][i], 7 * kEpsilon * std::abs(all[0][i])) << isa;
    }
  }
}

TEST(CpuIsas, UniformNumbersAreTheSameBits) {
  const auto all = results({1001}, [&](Backend& backend, const Tensor& out) {
    backend.fill_uniform({.seed = 3, .stream = 5, .offset = 8}, out);
  });
  for (const auto& one : all) EXPECT_EQ(one, all[0]);
}

// A logarithm within 2 epsilon, whose root has half of its error and half of one of its own; a sine
// or cosine within 2; half of one for their product: 4 on either side.
TEST(CpuIsas, NormalNumbersAgreeWithinEightEpsilon) {
  const auto all = results({1001}, [&](Backend& backend, const Tensor& out) {
    backend.fill_normal({.seed = 3, .stream = 5, .offset = 8}, out);
  });
  for (size_t isa = 1; isa < all.size(); ++isa) {
    for (size_t i = 0; i < all[0].size(); ++i) {
      ASSERT_NEAR(all[isa][i], all[0][i], 8 * kEpsilon * std::abs(all[0][i])) << isa;
    }
  }
}

}  // namespace
}  // namespace mutilde
