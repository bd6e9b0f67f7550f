// Rung 4 against rung 3, on a Hopper GPU; skipped elsewhere.
#include <gtest/gtest.h>

#include "cuda/hopper/matmul_wgmma.h"
#include "cuda/matmul_ladder.h"
#include "tests/cuda/device_array.h"

namespace mutilde::cuda {
namespace {

TEST(MatmulLadder, WgmmaEqualsWmma) {
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0),
        "cudaDeviceGetAttribute");
  if (major != 9) GTEST_SKIP() << "this GPU has no wgmma";
  constexpr struct {
    int M, N, K;
  } kSizes[] = {{1, 8, 8}, {128, 128, 64}, {129, 136, 72}, {200, 64, 1000}, {64, 320, 0}};
  for (const auto& s : kSizes) {
    const DeviceArray<__nv_bfloat16> a(numbers<__nv_bfloat16>(size_t(s.M) * s.K, 1));
    const DeviceArray<__nv_bfloat16> b(numbers<__nv_bfloat16>(size_t(s.K) * s.N, 2));
    DeviceArray<float> wmma(size_t(s.M) * s.N), wgmma(size_t(s.M) * s.N);
    matmul_wmma(a.data(), b.data(), wmma.data(), s.M, s.N, s.K, nullptr);
    matmul_wgmma(a.data(), b.data(), wgmma.data(), s.M, s.N, s.K, nullptr);
    const std::vector<float> expected = wmma.to_host(), actual = wgmma.to_host();
    for (size_t i = 0; i < expected.size(); ++i) {
      // The same exact products, below 1, in another order: K additions on each side, each of which
      // may cut off a bit.
      ASSERT_NEAR(actual[i], expected[i], 0x1p-22 * s.K * (s.K + 1))
          << "at " << i << " of " << s.M << "x" << s.N << "x" << s.K;
    }
  }
}

TEST(MatmulLadder, WgmmaRefusesWhatItCannotCopy) {
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0),
        "cudaDeviceGetAttribute");
  if (major != 9) GTEST_SKIP() << "this GPU has no wgmma";
  EXPECT_THROW(matmul_wgmma(nullptr, nullptr, nullptr, 8, 12, 8, nullptr), Error);
  EXPECT_THROW(matmul_wgmma(nullptr, nullptr, nullptr, 8, 8, 7, nullptr), Error);
}

}  // namespace
}  // namespace mutilde::cuda
