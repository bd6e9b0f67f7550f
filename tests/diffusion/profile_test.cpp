// What the profiler counts: a preset's operations, against the sums done by hand in
// docs/performance.md.
#include <algorithm>

#include <gtest/gtest.h>

#include "core/ops/ops.h"
#include "core/profiling_backend.h"
#include "diffusion/settings.h"

namespace mutilde {
namespace {

TEST(Profile, AProductCountsTwiceItsMultiplyAddsAndGivesWhatItGaveBefore) {
  Generator random(1);
  const Tensor a = random.normal({3, 5}), b = random.normal({5, 7});
  const Tensor plain = matmul(a, b);
  const Profiling profiled(Device::cpu());
  const Tensor product = matmul(a, b);
  EXPECT_TRUE(std::ranges::equal(product.values<float>(), plain.values<float>()));
  KernelProfile noted;
  for (const auto& [key, did] : profiled.noted().profiles()) {
    if (key.first == "matmul") noted += did;
  }
  EXPECT_EQ(noted.operations, 2 * 3 * 5 * 7);
  EXPECT_EQ(noted.calls, 1);
  EXPECT_EQ(noted.bytes, 4 * (3 * 5 + 5 * 7 + 3 * 7));
  EXPECT_GT(noted.seconds, 0);
  EXPECT_EQ(profiled.noted().product_operations(), noted.operations);
}

TEST(Profile, AForwardPassOfSmallTakes288MillionMultiplyAddsAndABackwardPassTwiceThat) {
  Settings settings;
  apply_preset(settings, "small");
  Generator random(1);
  const auto unet = make_unet(settings, random);
  unet->train();
  const Tensor x = random.normal({1, 32, 32, 3}), t = Tensor::full({1}, 500, DType::kInt64);
  const Profiling profiled(Device::cpu());
  const auto products = [&] { return profiled.noted().product_operations(); };
  const Tensor loss = mean(square(unet->forward(x, t)));
  const double forward = products();
  EXPECT_NEAR(forward / 2e6, 288, 0.5);
  loss.backward();
  // All but the gradient of the image, which nobody asks for; attention counts 2.5, since it makes
  // the weights again.
  EXPECT_NEAR((products() - forward) / forward, 2, 0.1);
}

}  // namespace
}  // namespace mutilde
