// A whole network, and a whole step of training, on the GPU and on the CPU.
#include <cmath>
#include <filesystem>
#include <limits>
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "core/op_cases.h"
#include "core/ops/ops.h"
#include "core/precision.h"
#include "core/precision_scope.h"
#include "cuda/devices.h"
#include "diffusion/checkpoint.h"
#include "diffusion/trainer.h"
#include "support/reference.h"
#include "support/reference_unet.h"
#include "tests/cuda/short_types.h"
#include "tests/cuda/tiny_training.h"

namespace mutilde {
namespace {

Device gpu() {
  use_cuda();
  return Device::cuda();
}

double largest(const std::vector<double>& values) {
  double result = 0;
  for (const double value : values) result = std::max(result, std::abs(value));
  return result;
}

void expect_near(const Tensor& actual, const Tensor& expected, double tolerance,
                 const std::string& what) {
  const auto a = actual.to_vector<double>(), b = expected.to_vector<double>();
  ASSERT_EQ(a.size(), b.size()) << what;
  const double allowed = tolerance * std::max(1.0, largest(b));
  for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], allowed) << what << " " << i;
}

/// In float64.
std::unique_ptr<UNet> random_unet(Device device) {
  Generator random(1);
  std::unique_ptr<UNet> unet = make_unet(tiny_settings(), random);
  randomise(*unet);
  unet->to(DType::kFloat64);
  unet->to(device);
  return unet;
}

// In float64 the two differ by rounding alone: some 30 layers, each of sums of at most 600 products.
TEST(CudaUNet, ForwardAndEveryGradientAreTheCpus) {
  const auto results = [](Device device) {
    const std::unique_ptr<UNet> unet = random_unet(device);
    const Tensor x = uniform({2, 4, 4, 1}).to(device);
    const Tensor t = Tensor::from<int64_t>({2}, {3, 900}).to(device);
    const Tensor y = Tensor::from<int64_t>({2}, {2, 0}).to(device);
    const Tensor out = unet->forward(x, t, y);
    out.backward(uniform(out.shape(), -1, 1, 9).to(device));
    std::vector<std::pair<std::string, Tensor>> all{{"out", out}};
    for (const NamedParameter& parameter : unet->named_parameters()) {
      all.emplace_back(parameter.name, parameter.value.grad());
    }
    return all;
  };
  const auto here = results(Device::cpu()), there = results(gpu());
  ASSERT_EQ(there.size(), here.size());
  for (size_t i = 0; i < here.size(); ++i) {
    ASSERT_TRUE(here[i].second.defined() && there[i].second.defined()) << here[i].first;
    EXPECT_GT(largest(here[i].second.to_vector<double>()), 0) << here[i].first;
    expect_near(there[i].second, here[i].second, 1e-11, here[i].first);
  }
}

// What 30 layers' roundings add up to, by the largest of all outputs: as for a step's gradients below.
TEST(CudaUNet, ForwardInAShortTypeIsNearTheReference) {
  for (const ShortType& type : kShortTypes) {
    SCOPED_TRACE(name_of(type.dtype));
    const PrecisionScope scope(type.precision);
    const NoGrad no_grad;
    for (const char* name : {"unet_a_minimal", "unet_b_scale_shift_heads_class", "unet_c_pooling",
                             "unet_d_super_resolution"}) {
      SCOPED_TRACE(name);
      const SafetensorsFile file(test::data_path(std::string(name) + ".safetensors"));
      Generator random(1);
      UNet unet(test::reference_config(file), random);
      test::load_reference(file, unet);
      unet.to(gpu());
      const auto images = [&](const char* of) {
        return file.has(of) ? test::nchw_to_nhwc(file.read(of)).to(DType::kFloat32).to(gpu())
                            : Tensor{};
      };
      const Tensor y = file.has("y") ? file.read("y").to(gpu()) : Tensor{};
      const Tensor out =
          unet.forward(images("x"), file.read("timesteps").to(gpu()), y, images("low_res"));
      EXPECT_TRUE(test::close(out, test::nchw_to_nhwc(file.read("out")),
                              2 * std::sqrt(30) * type.half_unit / 2));
      EXPECT_FALSE(test::close(out, test::nchw_to_nhwc(file.read("out")), type.half_unit / 16));
    }
  }
}

// Five steps of each sampler. Clipping keeps what a network of random weights makes of a rounding
// error from growing from step to step.
TEST(CudaSampling, ImagesAreTheCpus) {
  const auto images = [](Device device) {
    const NoGrad no_grad;
    const std::unique_ptr<UNet> unet = random_unet(device);
    const Tensor y = Tensor::from<int64_t>({2}, {2, 0}).to(device);
    const Model model = [&](const Tensor& x_t, const Tensor& t) {
      return unet->forward(x_t, t, y);
    };
    const SpacedDiffusion diffusion = make_diffusion(tiny_settings(), "5");
    Generator generator(3);
    const Tensor x_T = generator.normal({2, 4, 4, 1}, DType::kFloat64, device);
    const Noise noise = noise_from(generator);
    return std::vector<Tensor>{diffusion.p_sample_loop(model, x_T, noise),
                               diffusion.ddim_sample_loop(model, x_T, noise)};
  };
  const auto here = images(Device::cpu()), there = images(gpu());
  for (size_t i = 0; i < here.size(); ++i) expect_near(there[i], here[i], 1e-9, "images");
}

// The same timesteps, the same noise to a few roundings, the same dropout. AdamW's first step is lr
// times the gradient's sign, nearly: where a gradient is all round-off it may go either way, so the
// weights are compared by how many moved alike, and the averages of gradients as numbers.
TEST(CudaTrainer, AStepIsTheCpus) {
  const Tensor x_0 = uniform({2, 4, 4, 1}, -1, 1).to(DType::kFloat32);
  const Tensor y = Tensor::from<int64_t>({2}, {1, 2});
  Trainer here(tiny_settings()), there(tiny_settings(), gpu());
  randomise(here.unet());
  randomise(there.unet());
  const StepReport expected = here.step(x_0, y), actual = there.step(x_0, y);
  EXPECT_NEAR(actual.loss, expected.loss, 1e-4 * expected.loss);
  EXPECT_NEAR(actual.grad_norm, expected.grad_norm, 1e-3 * expected.grad_norm);

  // Measured by the largest of all: that of a bias before a norm of one channel a group is zero, and
  // round-off on either side.
  const auto& moments = here.optimizer().first_moments();
  double most = 0;
  for (const NamedParameter& moment : moments)
    most = std::max(most, largest(moment.value.to_vector<double>()));
  for (size_t i = 0; i < moments.size(); ++i) {
    expect_near(there.optimizer().first_moments()[i].value * (1 / most),
                moments[i].value * (1 / most), 1e-4, moments[i].name);
  }
  int64_t alike = 0, all = 0;
  for (size_t i = 0; i < here.optimizer().parameters().size(); ++i) {
    const auto a = here.optimizer().parameters()[i].value.to_vector<double>();
    const auto b = there.optimizer().parameters()[i].value.to_vector<double>();
    for (size_t j = 0; j < a.size(); ++j) alike += std::abs(a[j] - b[j]) < 1e-5 ? 1 : 0;
    all += static_cast<int64_t>(a.size());
  }
  EXPECT_GT(static_cast<double>(alike), 0.99 * static_cast<double>(all));
}

// A number rounded to bfloat16 is off by at most 2^-9 of the power of two above it, to float16 by 2^-12. A gradient
// has passed some 30 layers, forward and back; what each adds is as good as random, so that it grows with the root:
// 1.5 % in bfloat16 (0.9 % are measured), here twice that. And off by some of it, or nothing was of the type. Losses
// are multiplied by 2^10: a float16's gradients are neither too large then nor too small.
void expect_near_float32(const ShortType& type) {
  const Tensor x_0 = uniform({2, 4, 4, 1}, -1, 1).to(DType::kFloat32);
  const Tensor y = Tensor::from<int64_t>({2}, {1, 2});
  const auto gradients = [&](Precision precision) {
    const PrecisionScope scope(precision);
    Trainer trainer(tiny_settings(), gpu());
    if (precision == Precision::kFloat16) trainer.scale_losses(10);
    randomise(trainer.unet());
    EXPECT_FALSE(trainer.step(x_0, y).skipped);
    std::vector<double> all;
    for (const NamedParameter& moment : trainer.optimizer().first_moments()) {
      const std::vector<double> one = moment.value.to_vector<double>();
      all.insert(all.end(), one.begin(), one.end());
    }
    return all;
  };
  const auto expected = gradients(Precision::kFloat32), actual = gradients(type.precision);
  double size = 0, error = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    size += expected[i] * expected[i];
    error += (actual[i] - expected[i]) * (actual[i] - expected[i]);
  }
  EXPECT_LT(std::sqrt(error / size), 2 * std::sqrt(2 * 30) * type.half_unit / 2);
  EXPECT_GT(std::sqrt(error / size), type.half_unit / 4);
}

TEST(CudaTrainer, AStepInBfloat16IsNearTheOneInFloat32) { expect_near_float32(kShortTypes[0]); }
TEST(CudaTrainer, AStepInFloat16IsNearTheOneInFloat32) { expect_near_float32(kShortTypes[1]); }

TEST(CudaTrainer, StepsThatAreOnlyStartedAreThoseThatAreWaitedFor) {
  Trainer waiting(tiny_settings(), gpu()), starting(tiny_settings(), gpu());
  std::vector<StepReport> expected, actual;
  for (uint64_t step = 0; step < 4; ++step) {
    const Images batch = images(step + 1);
    expected.push_back(waiting.step(batch.x_0, batch.y));
    starting.start_step(batch.x_0, batch.y);
    EXPECT_FALSE(starting.settled());
    for (const StepReport& report : starting.take_reports()) actual.push_back(report);
    EXPECT_EQ(actual.size(), step);  // all but the last
  }
  starting.settle();
  for (const StepReport& report : starting.take_reports()) actual.push_back(report);
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_EQ(actual[i].step, expected[i].step);
    EXPECT_EQ(actual[i].loss, expected[i].loss);
    EXPECT_EQ(actual[i].grad_norm, expected[i].grad_norm);
    EXPECT_EQ(actual[i].lr, expected[i].lr);
  }
  EXPECT_EQ(state_of(starting), state_of(waiting));
}

// The step after it is computed on the GPU when the host hears of it, and is dropped.
TEST(CudaTrainer, AStepWhoseLossIsNotFiniteIsReportedByTheNextAndHasChangedNothing) {
  Trainer trainer(tiny_settings(), gpu()), untouched(tiny_settings(), gpu());
  const Images good = images(1);
  Images bad = images(2);
  bad.x_0 = bad.x_0.clone();
  bad.x_0.values<float>()[5] = std::numeric_limits<float>::infinity();
  trainer.start_step(good.x_0, good.y);
  trainer.start_step(bad.x_0, bad.y);
  EXPECT_EQ(trainer.take_reports().size(), 1U);
  EXPECT_EQ(trainer.step_count(), 2);
  EXPECT_THROW(save_checkpoint("none.safetensors", trainer), Error);
  try {
    trainer.start_step(good.x_0, good.y);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("loss of step 2"));
  }
  EXPECT_TRUE(trainer.settled());
  EXPECT_EQ(trainer.step_count(), 1);
  EXPECT_EQ(trainer.images_seen(), 2);
  EXPECT_TRUE(trainer.take_reports().empty());

  untouched.step(good.x_0, good.y);
  EXPECT_EQ(state_of(trainer), state_of(untouched));
  const Images next = images(3);
  EXPECT_EQ(trainer.step(next.x_0, next.y).loss, untouched.step(next.x_0, next.y).loss);
  EXPECT_EQ(state_of(trainer), state_of(untouched));

  trainer.start_step(bad.x_0, bad.y);
  EXPECT_THROW(trainer.settle(), Error);
  EXPECT_EQ(trainer.step_count(), 2);
  EXPECT_EQ(state_of(trainer), state_of(untouched));
}

// A scale of 2^30 gives gradients over 65504: steps change nothing but the scale, until it is small enough, and
// then the next is as if there had been no others.
TEST(CudaTrainer, AStepInFloat16WhoseGradientsOverflowIsSkipped) {
  const PrecisionScope scope(Precision::kFloat16);
  Trainer trainer(tiny_settings(), gpu()), untouched(tiny_settings(), gpu());
  randomise(trainer.unet());
  randomise(untouched.unet());
  trainer.scale_losses(30);
  const auto before = state_of(untouched);
  ASSERT_EQ(state_of(trainer), before);
  const Images batch = images(1);
  int64_t skipped = 0;
  while (skipped < 30 && trainer.step(batch.x_0, batch.y).skipped) {
    ++skipped;
    EXPECT_EQ(*trainer.lg_loss_scale(), 30.0 - static_cast<double>(skipped));
    EXPECT_EQ(trainer.step_count(), skipped);
    EXPECT_EQ(trainer.optimizer().step_count(), 0);
    EXPECT_EQ(state_of(trainer), before);
  }
  EXPECT_GE(skipped, 5);
  EXPECT_LT(skipped, 30);
  EXPECT_DOUBLE_EQ(*trainer.lg_loss_scale(), 30.001 - static_cast<double>(skipped));
  EXPECT_NE(state_of(trainer), before);
  untouched.scale_losses(30.0 - static_cast<double>(skipped));
  untouched.set_step_count(skipped, skipped);
  EXPECT_FALSE(untouched.step(batch.x_0, batch.y).skipped);
  EXPECT_EQ(state_of(trainer), state_of(untouched));
}

TEST(CudaTrainer, ARunInFloat16GoesOnFromItsCheckpointBitForBit) {
  const PrecisionScope scope(Precision::kFloat16);
  const auto path = std::filesystem::temp_directory_path() /
                    fmt::format("mutilde_float16_{}.safetensors", ::getpid());
  Trainer whole(tiny_settings(), gpu()), first_half(tiny_settings(), gpu());
  const auto run = [](Trainer& trainer, uint64_t from, uint64_t to) {
    for (uint64_t step = from; step < to; ++step) {
      const Images batch = images(step + 1);
      trainer.step(batch.x_0, batch.y);
    }
  };
  for (Trainer* trainer : {&whole, &first_half}) trainer->scale_losses(24);
  run(whole, 0, 12);
  run(first_half, 0, 4);
  save_checkpoint(path, first_half);
  Trainer resumed(tiny_settings(), gpu());
  Checkpoint(path).restore(resumed);
  std::filesystem::remove(path);
  run(resumed, 4, 12);
  EXPECT_GT(whole.skipped_steps(), 0);
  EXPECT_GT(whole.optimizer().step_count(), 0);
  EXPECT_EQ(resumed.skipped_steps(), whole.skipped_steps());
  EXPECT_EQ(resumed.lg_loss_scale(), whole.lg_loss_scale());
  EXPECT_EQ(state_of(resumed), state_of(whole));
}

TEST(CudaTrainer, WaitsForTheLossesThatItsSamplerLearnsFrom) {
  Settings settings = tiny_settings();
  settings.schedule_sampler = "loss-second-moment";
  Trainer trainer(settings, gpu());
  const Images batch = images(1);
  trainer.start_step(batch.x_0, batch.y);
  EXPECT_TRUE(trainer.settled());
  EXPECT_EQ(trainer.take_reports().size(), 1U);
  const auto counts = trainer.sampler().state().at("counts").to_vector<double>();
  EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), 0.0), 2);
}

}  // namespace
}  // namespace mutilde
