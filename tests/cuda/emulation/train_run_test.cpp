// The app's training loop on a GPU on which something goes wrong: what is said, and what is kept.
#include "app/train_run.h"

#include <filesystem>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "core/precision_scope.h"
#include "cuda/devices.h"
#include "diffusion/checkpoint.h"
#include "tests/cuda/emulation/fault_testing.h"

namespace mutilde::app {
namespace {

namespace fs = std::filesystem;
using emulation::options;
using emulation::OptionsScope;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

/// Six grey images of two classes in turn.
class Stripes final : public Dataset {
 public:
  Stripes() : Dataset(4, 1, {0, 1, 0, 1, 0, 1}, {"cat", "dog"}) {}

 private:
  void decode(int64_t index, uint8_t* pixels) const override {
    for (int i = 0; i < 16; ++i) pixels[i] = static_cast<uint8_t>(i * 40 * (index + 1));
  }
  bool decodes_fast() const override { return true; }
};

Settings tiny_settings(int64_t steps) {
  Settings settings;
  settings.image_size = 4;
  settings.image_channels = 1;
  settings.num_channels = 32;
  settings.channel_mult = "1";
  settings.num_res_blocks = 1;
  settings.attention_resolutions = "";
  settings.class_cond = true;
  settings.num_classes = 2;
  settings.diffusion_steps = 10;
  settings.noise_schedule = "cosine";
  settings.ema_rate = "0.9";
  settings.batch_size = 1;
  settings.steps = steps;
  return settings;
}

class TrainRunTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("mutilde_train_run_test_{}", getpid());
    fs::create_directories(folder_);
    use_cuda();
  }
  void TearDown() override {
    fs::remove_all(folder_);
    cudaGetLastError();
  }

  std::string checkpoint(int64_t step) const {
    return numbered_file(folder_, "checkpoint", step, "safetensors").string();
  }

  /// What the run prints, out_ and err_, and what it throws. From a new folder unless it goes on.
  std::string run(Trainer& trainer, int64_t save_interval) {
    RunOptions run_options;
    run_options.save_interval = save_interval;
    run_options.sample_interval = 0;
    std::string error = "no error";
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    try {
      TrainRun(run_options, folder_, dataset_, trainer).run();
    } catch (const Error& thrown) {
      error = thrown.what();
    }
    out_ = testing::internal::GetCapturedStdout();
    err_ = testing::internal::GetCapturedStderr();
    return error;
  }

  fs::path folder_;
  Stripes dataset_;
  std::string out_, err_;
};

// Four steps of as many launches each, and a checkpoint after two and four of them.
TEST_F(TrainRunTest, OnALostDeviceTheLastCheckpointIsNamedOrThatThereIsNone) {
  const OptionsScope scope;
  constexpr int64_t kMany = 1'000'000;
  options().launches_until_lost = kMany;
  Trainer whole(tiny_settings(4), Device::cuda());
  const int64_t made = options().launches_until_lost;
  ASSERT_EQ(run(whole, 2), "no error");
  const int64_t launches = made - options().launches_until_lost;

  const auto lost_after = [&](double part) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    options().launches_until_lost = -1;
    cudaGetLastError();
    Trainer trainer(tiny_settings(4), Device::cuda());
    options().launches_until_lost = static_cast<int64_t>(part * static_cast<double>(launches));
    EXPECT_THAT(run(trainer, 2), HasSubstr("a kernel that was launched before has failed"));
  };
  lost_after(0.4);  // in the second step
  EXPECT_THAT(
      err_,
      AllOf(HasSubstr("what was trained to step 1 could not be saved: cuda: copy from the device"),
            HasSubstr("there is no checkpoint\n")));
  lost_after(0.6);  // in the third, right after a checkpoint
  EXPECT_THAT(
      err_, AllOf(Not(HasSubstr("could not be saved")),
                  HasSubstr("the last checkpoint is of step 2; to go on: mutilde train --resume " +
                            checkpoint(2))));
  lost_after(0.9);  // in the fourth
  EXPECT_THAT(
      err_,
      AllOf(HasSubstr("what was trained to step 3 could not be saved: cuda: copy from the device"),
            HasSubstr("the last checkpoint is of step 2; to go on: mutilde train --resume " +
                      checkpoint(2))));
  EXPECT_EQ(Checkpoint(checkpoint(2)).step(), 2);
  EXPECT_FALSE(fs::exists(checkpoint(3)));
}

TEST_F(TrainRunTest, OutOfMemoryInAStepKeepsTheLastCheckpoint) {
  Trainer first(tiny_settings(2), Device::cuda());
  ASSERT_EQ(run(first, 0), "no error");
  Trainer trainer(tiny_settings(4), Device::cuda());
  Checkpoint(checkpoint(2)).restore(trainer);
  const OptionsScope scope;
  options().memory_bytes = 1000;
  EXPECT_THAT(run(trainer, 1), AllOf(HasSubstr("cuda:0 is out of memory: "),
                                     HasSubstr(" MiB asked, "), HasSubstr(" MiB free of ")));
  EXPECT_THAT(err_,
              HasSubstr("the last checkpoint is of step 2; to go on: mutilde train --resume " +
                        checkpoint(2)));
  EXPECT_EQ(Checkpoint(checkpoint(2)).step(), 2);
}

// Every other step has an image of the class whose embedding is broken.
TEST_F(TrainRunTest, SkippedStepsAreToldAndDoNotSpoilTheLossShown) {
  const PrecisionScope scope(Precision::kFloat16);
  Trainer trainer(tiny_settings(6), Device::cuda());
  trainer.scale_losses(8);  // 2^20 is too much for a mean of 16 pixels
  for (const NamedParameter& parameter : trainer.unet().named_parameters()) {
    if (parameter.name != "label_emb.weight") continue;
    const Tensor row = parameter.value.slice(1, 2);
    row.copy_(Tensor::full(row.shape(), std::numeric_limits<double>::infinity()));
  }
  ASSERT_EQ(run(trainer, 0), "no error");
  EXPECT_EQ(trainer.skipped_steps(), 3);
  int told = 0;
  for (size_t at = err_.find(" skipped: its loss or gradient"); at != std::string::npos;
       at = err_.find(" skipped: its loss or gradient", at + 1)) {
    ++told;
  }
  EXPECT_EQ(told, 3) << err_;
  EXPECT_THAT(err_, HasSubstr("; lg_loss_scale is 5.00"));
  EXPECT_THAT(err_, HasSubstr("loss "));
  EXPECT_THAT(err_ + out_, Not(HasSubstr("nan")));
}

}  // namespace
}  // namespace mutilde::app
