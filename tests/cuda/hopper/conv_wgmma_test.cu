// Rung 4 of the convolution against rung 1, on a Hopper GPU; skipped elsewhere.
#include <gtest/gtest.h>

#include "cuda/conv_plain.h"
#include "cuda/hopper/conv_wgmma.h"
#include "tests/cuda/device_array.h"

namespace mutilde::cuda {
namespace {

bool is_hopper() {
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0),
        "cudaDeviceGetAttribute");
  return major == 9;
}

std::vector<float> as_float(const std::vector<__nv_bfloat16>& values) {
  std::vector<float> result;
  for (const __nv_bfloat16 value : values) result.push_back(__bfloat162float(value));
  return result;
}

TEST(Conv2dLadder, WgmmaEqualsPlain) {
  if (!is_hopper()) GTEST_SKIP() << "this GPU has no wgmma";
  // H, W, C, H_out, W_out, C_out, kH, kW, stride, padding: images larger than a box of pixels, smaller
  // (several share one) and of odd sizes; channels over and under a tile.
  constexpr ConvSizes kSizes[] = {{32, 32, 64, 32, 32, 128, 3, 3, 1, 1},
                                  {8, 8, 72, 8, 8, 130, 3, 3, 1, 1},
                                  {9, 11, 8, 5, 6, 6, 3, 3, 2, 1},
                                  {17, 5, 136, 17, 5, 64, 1, 1, 1, 0}};
  constexpr int N = 3;
  for (const ConvSizes& s : kSizes) {
    const auto x = numbers<__nv_bfloat16>(size_t(N) * s.H * s.W * s.C, 1);
    const auto weight = numbers<__nv_bfloat16>(size_t(s.C_out) * s.kH * s.kW * s.C, 2);
    const DeviceArray<__nv_bfloat16> short_x(x), short_weight(weight);
    const DeviceArray<float> long_x(as_float(x)), long_weight(as_float(weight));
    const DeviceArray<float> bias(numbers<float>(s.C_out, 3));
    const int64_t pixels = int64_t{N} * s.H_out * s.W_out;
    DeviceArray<float> plain(pixels * s.C_out), wgmma(pixels * s.C_out);
    conv2d_plain(s, long_x.data(), long_weight.data(), bias.data(), plain.data(), pixels);
    conv2d_wgmma(s, N, short_x.data(), short_weight.data(), bias.data(), wgmma.data(), nullptr);
    const std::vector<float> expected = plain.to_host(), actual = wgmma.to_host();
    const int terms = s.kH * s.kW * s.C + 1;
    for (size_t i = 0; i < expected.size(); ++i) {
      // The same products, exact and below 1, in another order: `terms` additions on each side, each
      // of which may cut off a bit.
      ASSERT_NEAR(actual[i], expected[i], 0x1p-22 * terms * terms) << "at " << i;
    }
  }
}

TEST(Conv2dLadder, WgmmaRefusesWhatItCannotCopy) {
  if (!is_hopper()) GTEST_SKIP() << "this GPU has no wgmma";
  const ConvSizes channels{8, 8, 3, 8, 8, 8, 3, 3, 1, 1}, stride{9, 9, 8, 3, 3, 8, 3, 3, 3, 1};
  for (const ConvSizes& s : {channels, stride}) {
    EXPECT_THROW(conv2d_wgmma(s, 1, nullptr, nullptr, nullptr, nullptr, nullptr), Error);
  }
}

}  // namespace
}  // namespace mutilde::cuda
