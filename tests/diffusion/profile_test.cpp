// What the profiler counts: a preset's operations, against the sums done by hand in
// docs/performance.md.
#include <algorithm>

#include <gtest/gtest.h>

#include "core/ops/ops.h"
#include "core/profiling_backend.h"
#include "diffusion/settings.h"

namespace mutilde {
namespace {

/// The CPU behind a profiler, as long as this lives.
class Profiled {
 public:
  Profiled() {
    profiler().clear();  // made before it is registered: it asks for the CPU's backend
    before_ = register_backend(DeviceType::kCpu, get);
  }
  ~Profiled() { register_backend(DeviceType::kCpu, before_); }
  const ProfilingBackend& noted() const { return profiler(); }

 private:
  static ProfilingBackend& profiler() {
    static ProfilingBackend instance(backend(Device::cpu()));
    return instance;
  }
  static Backend& get(int) { return profiler(); }
  MakeBackend before_ = nullptr;
};

/// Operations of every kernel whose name begins so.
double operations(const ProfilingBackend& noted, const std::string& begin) {
  double sum = 0;
  for (const auto& [key, did] : noted.profiles()) {
    if (key.first.starts_with(begin)) sum += did.operations;
  }
  return sum;
}

TEST(Profile, AProductCountsTwiceItsMultiplyAddsAndGivesWhatItGaveBefore) {
  Generator random(1);
  const Tensor a = random.normal({3, 5}), b = random.normal({5, 7});
  const Tensor plain = matmul(a, b);
  const Profiled profiled;
  const Tensor product = matmul(a, b);
  EXPECT_TRUE(std::ranges::equal(product.values<float>(), plain.values<float>()));
  ASSERT_EQ(operations(profiled.noted(), "matmul"), 2 * 3 * 5 * 7);
  for (const auto& [key, did] : profiled.noted().profiles()) {
    if (key.first != "matmul") continue;
    EXPECT_EQ(did.calls, 1);
    EXPECT_EQ(did.bytes, 4 * (3 * 5 + 5 * 7 + 3 * 7));
    EXPECT_GT(did.seconds, 0);
  }
}

TEST(Profile, AForwardPassOfSmallTakes288MillionMultiplyAddsAndABackwardPassTwiceThat) {
  Settings settings;
  apply_preset(settings, "small");
  Generator random(1);
  const auto unet = make_unet(settings, random);
  unet->train();
  const Tensor x = random.normal({1, 32, 32, 3}), t = Tensor::full({1}, 500, DType::kInt64);
  const Profiled profiled;
  const auto products = [&] {
    double sum = 0;
    for (const char* kernel : {"conv2d", "linear", "matmul", "attention"})
      sum += operations(profiled.noted(), kernel);
    return sum;
  };
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
