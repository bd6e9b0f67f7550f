// The command from end to end on generated pictures: train, stop, resume, sample.
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "core/safetensors.h"
#include "data/codec.h"
#include "running.h"

namespace mutilde::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const char* const kTiny =
    " --image_size 8 --num_channels 32 --channel_mult 1,1 --num_res_blocks 1"
    " --attention_resolutions 4 --num_heads 2"
    " --diffusion_steps 40 --batch_size 4 --num_samples 4 --sample_steps 5 ";

/// The size of a .npy array that stands in an .npz, from its header: "(6, 8, 8, 3)".
std::string npy_shape(const std::string& npz, const std::string& name) {
  const size_t entry = npz.find(name + ".npy");
  const size_t open = npz.find("'shape': ", entry) + 9;
  return entry == npz.npos ? "none" : npz.substr(open, npz.find(')', open) + 1 - open);
}

TEST_F(CommandTest, TrainsResumesBitForBitAndSamples) {
  make_images("images", 11, 8);
  const std::string flags =
      std::string(
          "train --data images --class_cond --learn_sigma True --random_flip --dropout 0.1 ") +
      "--schedule_sampler loss-second-moment --ema_rate 0.99,0.5 " + kTiny;
  succeed(flags +
          "--out whole --steps 6 --save_interval 2 --keep 2 --sample_interval 3 --log_interval 2");
  const fs::path whole = work() / "whole";
  EXPECT_FALSE(fs::exists(whole / "checkpoint_000002.safetensors"));  // the newest two are kept
  for (const char* name : {"checkpoint_000004.safetensors", "checkpoint_000006.safetensors",
                           "samples_000003.png", "samples_000006.png", "loss.png"}) {
    EXPECT_TRUE(fs::exists(whole / name)) << name;
  }
  const std::string csv = read_file(whole / "progress.csv");
  EXPECT_TRUE(csv.starts_with(
      "step,loss,mse,vb,loss_q0,loss_q1,loss_q2,loss_q3,grad_norm,lr,images_per_s\n2,"));
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 4);

  // Stopped at step 3 and resumed with other places for its files:
  // the same weights, averages, moments.
  succeed(flags + "--out half --steps 3 --sample_interval 0");
  succeed(
      "train --resume half --steps 6 --sample_interval 2 --num_samples 2 --sample_steps 2 "
      "--log_interval 1");
  EXPECT_TRUE(read_file(whole / "checkpoint_000006.safetensors") ==
              read_file(work() / "half" / "checkpoint_000006.safetensors"));
  EXPECT_THAT(read_file(work() / "half" / "progress.csv"),
              AllOf(HasSubstr("\n3,"), HasSubstr("\n4,"), HasSubstr("\n6,")));

  const auto info = succeed("info whole").out;
  EXPECT_THAT(info, AllOf(HasSubstr("num_classes             3"),
                          HasSubstr("learn_sigma             True")));

  succeed(
      "sample whole --num_samples 6 --batch_size 4 --timestep_respacing 5 --out grid.png "
      "--png_dir single --npz samples.npz --progressive strip.png");
  const Image grid = load_image(work() / "grid.png"), strip = load_image(work() / "strip.png");
  EXPECT_EQ(grid.width, 3 * 10 + 2);  // 3 x 2 pictures of 8 pixels, 2 between them and around
  EXPECT_EQ(strip.height, 6 * 2 * 10 + 2);
  EXPECT_EQ(strip.width, 5 * 10 + 2);
  EXPECT_TRUE(fs::exists(work() / "single" / "2_000005.png"));  // class 2
  const std::string npz = read_file(work() / "samples.npz");
  EXPECT_EQ(npy_shape(npz, "arr_0"), "(6, 8, 8, 3)");
  EXPECT_EQ(npy_shape(npz, "arr_1"), "(6, )");
}

TEST_F(CommandTest, SamplesDependOnTheSeedAndNotOnTheBatchSize) {
  make_images("images", 6, 8);
  succeed(std::string("train --data images --out run --steps 2 --sample_interval 0") + kTiny);
  succeed("sample run --num_samples 5 --timestep_respacing 4 --batch_size 5 --npz a.npz");
  succeed("sample run --num_samples 5 --timestep_respacing 4 --batch_size 2 --npz b.npz");
  succeed("sample run --num_samples 5 --timestep_respacing 4 --seed 1 --npz c.npz");
  succeed("sample run --num_samples 5 --timestep_respacing 4 --use_ddim --npz d.npz");
  const std::string a = read_file(work() / "a.npz");
  EXPECT_TRUE(a == read_file(work() / "b.npz"));
  EXPECT_FALSE(a == read_file(work() / "c.npz"));
  EXPECT_FALSE(a == read_file(work() / "d.npz"));
}

TEST_F(CommandTest, EnlargesPicturesWithASuperResolutionModel) {
  make_images("images", 6, 8);
  make_images("small", 3, 4);
  succeed(std::string("train --data images --small_size 4 --out sr --steps 2 --sample_interval 2") +
          kTiny);
  EXPECT_THAT(refusal("sample sr"), HasSubstr("enlarges images of 4x4"));
  succeed("sample sr --low_res small --num_samples 3 --timestep_respacing 3 --npz large.npz");
  EXPECT_EQ(npy_shape(read_file(work() / "large.npz"), "arr_0"), "(3, 8, 8, 3)");
  EXPECT_THAT(refusal("sample sr --low_res large.npz"), HasSubstr("[N,4,4,3] expected"));

  // A model of small pictures makes them; the other enlarges them.
  succeed(
      "train --data small --out base --image_size 4 --num_channels 32 --channel_mult 1 "
      "--num_res_blocks 1 --diffusion_steps 40 --batch_size 3 --steps 1 --sample_interval 0");
  succeed("sample base --num_samples 2 --timestep_respacing 3 --npz base.npz");
  succeed(
      "sample sr --base_samples base.npz --num_samples 2 --timestep_respacing 3 --out large.png");
  EXPECT_EQ(load_image(work() / "large.png").width, 2 * 10 + 2);
  const std::string base = read_file(work() / "base.npz");
  std::ofstream(work() / "cut.npz", std::ios::binary) << base.substr(0, base.size() / 2);
  EXPECT_THAT(refusal("sample sr --low_res cut.npz"), HasSubstr("cut.npz"));
  EXPECT_THAT(refusal("sample sr --low_res missing.npz"), HasSubstr("missing.npz"));
}

TEST_F(CommandTest, WeightsWithoutSettingsAreSampledWithTheModelsFlags) {
  make_images("images", 6, 8);
  succeed(std::string("train --data images --out run --steps 1 --sample_interval 0") + kTiny);
  const SafetensorsFile file(work() / "run" / "checkpoint_000001.safetensors");
  std::vector<std::pair<std::string, Tensor>> weights;
  for (const std::string& name : file.names()) {
    if (!name.starts_with("ema_") && !name.starts_with("opt."))
      weights.emplace_back(name, file.read(name));
  }
  write_safetensors(work() / "foreign.safetensors", weights);
  const std::string model =
      " --image_size 8 --num_channels 32 --channel_mult 1,1 --num_res_blocks 1"
      " --attention_resolutions 4 --num_heads 2 --diffusion_steps 40";
  succeed("sample foreign.safetensors --num_samples 2 --timestep_respacing 3 --npz a.npz" + model);
  succeed("sample run --use_raw --num_samples 2 --timestep_respacing 3 --npz b.npz");
  EXPECT_TRUE(read_file(work() / "a.npz") == read_file(work() / "b.npz"));
  EXPECT_THAT(refusal("sample foreign.safetensors --learn_sigma" + model), HasSubstr("out.2."));
}

TEST_F(CommandTest, OverwriteRemovesARunAndNothingElse) {
  make_images("images", 6, 8);
  const std::string flags =
      std::string("train --data images --out run --sample_interval 0") + kTiny;
  succeed(flags + "--steps 2");
  std::ofstream(work() / "run" / "notes.txt") << "mine";
  succeed(flags + "--steps 1 --overwrite");
  EXPECT_FALSE(fs::exists(work() / "run" / "checkpoint_000002.safetensors"));
  EXPECT_TRUE(fs::exists(work() / "run" / "checkpoint_000001.safetensors"));
  EXPECT_EQ(read_file(work() / "run" / "notes.txt"), "mine");
}

TEST_F(CommandTest, GoingOnFromAnEarlierCheckpointTakesANewFolder) {
  make_images("images", 6, 8);
  const std::string flags =
      std::string("train --data images --sample_interval 0 --save_interval 1") + kTiny;
  succeed(flags + "--out run --steps 4 --keep 0");
  succeed(flags + "--out other --steps 2");
  const std::string first = "train --resume run/checkpoint_000001.safetensors --steps 4 --keep 2 ";
  EXPECT_THAT(refusal(first),
              AllOf(HasSubstr("run/checkpoint_000001.safetensors"),
                    HasSubstr("later checkpoints, checkpoint_000002.safetensors, "
                              "checkpoint_000003.safetensors, checkpoint_000004.safetensors"),
                    HasSubstr("--out")));
  EXPECT_THAT(refusal(first + "--out run/../run/"), HasSubstr("later checkpoints"));
  // Another run's folder is not to be mixed with this one.
  EXPECT_THAT(refusal(first + "--out other"), HasSubstr("not empty"));
  EXPECT_THAT(refusal("train --resume run --steps 5 --out images"), HasSubstr("not empty"));

  fs::create_directories(work() / "branch");
  succeed(first + "--out branch --save_interval 1");
  EXPECT_TRUE(fs::exists(work() / "branch" / "checkpoint_000003.safetensors"));
  EXPECT_TRUE(read_file(work() / "branch" / "checkpoint_000004.safetensors") ==
              read_file(work() / "run" / "checkpoint_000004.safetensors"));
  for (int step : {1, 2, 3, 4}) {
    EXPECT_TRUE(fs::exists(work() / fmt::format("run/checkpoint_{:06}.safetensors", step)));
  }
  succeed("train --resume run --steps 5 --out run/. --keep 2");  // its own folder, by another name
  EXPECT_FALSE(fs::exists(work() / "run" / "checkpoint_000003.safetensors"));
}

TEST_F(CommandTest, ARunThatFailsSavesWhatItHasTrained) {
  make_images("images", 6, 8);
  // Decay that overshoots makes each weight 999 times larger a step.
  const Result result =
      run(std::string("train --data images --out run --steps 400 --lr 1 --weight_decay 1000 "
                      "--save_interval 0 --sample_interval 0 --log_interval 1000 "
                      "--random_flip") +
          kTiny);
  EXPECT_EQ(result.exit_code, 2);
  const size_t start = result.err.find("the loss of step ");
  ASSERT_NE(start, std::string::npos) << result.err;
  const int failed = std::stoi(result.err.substr(start + 17));
  ASSERT_GT(failed, 1) << result.err;
  const fs::path checkpoint = fmt::format("run/checkpoint_{:06}.safetensors", failed - 1);
  EXPECT_THAT(result.err, HasSubstr("to go on: mutilde train --resume " + checkpoint.string()));
  const SafetensorsFile file(work() / checkpoint);
  for (const std::string& name : file.names()) {
    for (double value : file.read(name).to_vector<double>())
      ASSERT_TRUE(std::isfinite(value)) << name;
  }
  EXPECT_THAT(read_file(work() / "run" / "progress.csv"),
              HasSubstr(fmt::format("\n{},", failed - 1)));
}

TEST_F(CommandTest, APictureThatCannotBeWrittenIsAWarning) {
  make_images("images", 6, 8);
  succeed(std::string("train --data images --out run --steps 1 --sample_interval 0") + kTiny);
  fs::remove(work() / "run" / "loss.png");
  fs::create_directories(work() / "run" / "samples_000002.png");
  fs::create_directories(work() / "run" / "loss.png");
  const Result result =
      succeed("train --resume run --steps 3 --sample_interval 1 --num_samples 2 --sample_steps 2");
  EXPECT_THAT(result.err,
              AllOf(HasSubstr("warning: no samples after step 2"), HasSubstr("samples_000002.png"),
                    HasSubstr("warning: no plot of the loss")));
  EXPECT_TRUE(fs::is_regular_file(work() / "run" / "samples_000003.png"));
  EXPECT_TRUE(fs::exists(work() / "run" / "checkpoint_000003.safetensors"));
}

TEST_F(CommandTest, InfoCountsTheImagesOfEveryBatchSize) {
  make_images("images", 6, 8);
  succeed(std::string("train --data images --out run --steps 2 --sample_interval 0") + kTiny);
  EXPECT_THAT(succeed("info run").out, HasSubstr("step 2, 8 images seen"));
  succeed("train --resume run --steps 5 --batch_size 2 --sample_interval 0");
  EXPECT_THAT(succeed("info run").out, HasSubstr("step 5, 14 images seen"));
}

class InterruptTest : public CommandTest {
 protected:
  /// Starts to train, sends signals in the midst of it, and expects a checkpoint to go on from.
  void expect_checkpoint(const std::vector<int>& signals) const;
};

void InterruptTest::expect_checkpoint(const std::vector<int>& signals) const {
  make_images("images", 6, 8);
  const std::string command = fmt::format(
      "cd '{0}/work' && exec '{1}' train --data images --out run --log_interval 1 {2} 2>'{0}/err'",
      folder_.string(), MUTILDE_BINARY, kTiny);
  const pid_t child = fork();
  if (child == 0) {
    execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    _exit(127);
  }
  for (int i = 0;
       i < 1000 && read_file(work() / "run" / "progress.csv").find("\n2,") == std::string::npos;
       ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  for (const int signal : signals) {
    kill(child, signal);
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
  }
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 130);
  const std::string err = read_file(folder_ / "err");
  EXPECT_THAT(err, HasSubstr("to go on: mutilde train --resume run/checkpoint_"));
  EXPECT_THAT(succeed("info run").out, HasSubstr("images seen"));
  const size_t start = err.find("stopped after step ") + 19;
  const int step = std::stoi(err.substr(start));
  succeed(fmt::format("train --resume run --sample_interval 0 --steps {}", step + 1));
  EXPECT_THAT(err, HasSubstr("stopping after this step"));
}

TEST_F(InterruptTest, SavesAndSaysHowToGoOn) { expect_checkpoint({SIGINT}); }
TEST_F(InterruptTest, OfATerminalThatClosesSavesToo) { expect_checkpoint({SIGHUP}); }
TEST_F(InterruptTest, ThatComesTwiceIsOne) { expect_checkpoint({SIGINT, SIGINT, SIGTERM}); }

TEST_F(CommandTest, ARunOutlivesTheReaderOfItsOutput) {
  make_images("images", 6, 8);
  const std::string command = fmt::format(
      "cd '{0}/work' && '{1}' train --data images --out run --steps 9 --log_interval 1 "
      "--sample_interval 0 {2} 2>&1 | head -n 1 >'{0}/out'",
      folder_.string(), MUTILDE_BINARY, kTiny);
  ASSERT_EQ(std::system(command.c_str()), 0);
  EXPECT_THAT(read_file(folder_ / "out"), HasSubstr("training on"));
  EXPECT_THAT(succeed("info run").out, HasSubstr("step 9,"));
}

TEST_F(CommandTest, TrainingNamesTheClasses) {
  make_images("images", 6, 8);
  const Result result = succeed(
      std::string("train --data images --out run --steps 1 --class_cond --sample_interval 0") +
      kTiny);
  EXPECT_THAT(result.err, HasSubstr("classes: 0 cat, 1 dog, 2 owl\n"));
}

TEST_F(CommandTest, AResumedRunKeepsItsPrecision) {
  make_images("images", 6, 8);
  succeed(std::string("train --data images --out run --steps 2 --precision bf16 "
                      "--sample_interval 0") +
          kTiny);
  EXPECT_THAT(succeed("info run").out, HasSubstr("products in bf16"));
  succeed("train --resume run --steps 3 --sample_interval 0");
  EXPECT_THAT(succeed("info run").out, HasSubstr("step 3, 12 images seen, products in bf16"));
  succeed("train --resume run --steps 4 --sample_interval 0 --precision fp32");
  EXPECT_THAT(succeed("info run").out, HasSubstr("products in fp32"));
}

TEST_F(CommandTest, WeightsThatAreNoNumbersMakeNoPictures) {
  make_images("images", 6, 8);
  succeed(std::string("train --data images --out run --steps 1 --sample_interval 0") + kTiny);
  const fs::path path = work() / "run" / "checkpoint_000001.safetensors";
  std::string bytes = read_file(path);
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof(header));
  std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(sizeof(header) + header), bytes.end(),
            '\xff');
  std::ofstream(path, std::ios::binary) << bytes;
  const Result result = run("sample run --num_samples 1 --timestep_respacing 2 --use_raw");
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("the samples are not finite numbers"));
  const Result nll = run("nll run --num_samples 1 --timestep_respacing 2 --use_raw");
  EXPECT_EQ(nll.exit_code, 2);
  EXPECT_THAT(nll.err, HasSubstr("are not finite numbers"));
  EXPECT_FALSE(fs::exists(work() / "samples.png"));
}

TEST_F(CommandTest, AnErrorOutputThatIsFullEndsNothing) {
  make_images("images", 6, 8);
  const std::string command = fmt::format(
      "cd '{0}/work' && '{1}' train --data images --out run --steps 3 --log_interval 1 "
      "--sample_interval 0 {2} 2>/dev/full >'{0}/out'",
      folder_.string(), MUTILDE_BINARY, kTiny);
  EXPECT_EQ(std::system(command.c_str()), 0);
  EXPECT_THAT(succeed("info run").out, HasSubstr("step 3,"));
  const int status =
      std::system(fmt::format("'{}' no_such_command 2>/dev/full", MUTILDE_BINARY).c_str());
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 2);
}

}  // namespace
}  // namespace mutilde::test
