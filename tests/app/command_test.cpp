// The command line: help, suggestions, and every kind of bad input, which must end in one clear
// line, exit code 2 and nothing written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/safetensors.h"
#include "running.h"

namespace mutilde::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST_F(CommandTest, HelpNamesCommandsFlagsAndDefaults) {
  EXPECT_THAT(succeed("--help").out,
              AllOf(HasSubstr("train"), HasSubstr("sample"), HasSubstr("info")));
  EXPECT_THAT(succeed("--version").out, HasSubstr("mutilde "));
  const std::string train = succeed("train --help").out;
  for (const char* text :
       {"Usage: mutilde train", "Model:", "Diffusion:", "Training:", "--num_res_blocks N", "[16,8]",
        "--noise_schedule linear|cosine", "--preset small|medium|cifar", "Examples:"}) {
    EXPECT_THAT(train, HasSubstr(text));
  }
  EXPECT_EQ(succeed("help train").out, train);
  EXPECT_EQ(succeed("train --lr nonsense --help").out, train);
  EXPECT_THAT(succeed("sample -h").out, AllOf(HasSubstr("CHECKPOINT"), HasSubstr("--progressive")));
  size_t longest = 0, line_start = 0;
  for (size_t i = 0; i < train.size(); ++i) {
    if (train[i] != '\n') continue;
    longest = std::max(longest, i - line_start);
    line_start = i + 1;
  }
  EXPECT_LE(longest, 100U);
  EXPECT_EQ(run("").exit_code, 2);
}

TEST_F(CommandTest, BenchTellsTheTimeOfAStepAndOfItsKernels) {
  const std::string tiny =
      "bench --num_channels 32 --channel_mult 1,1 --num_res_blocks 1 "
      "--image_size 8 --batch_size 2 --steps 1";
  EXPECT_THAT(succeed(tiny + " --mode sample").out,
              AllOf(HasSubstr("ms a step"), HasSubstr("images/s"), HasSubstr("first step")));
  const std::string profile = succeed(tiny + " --profile --shapes --picture profile.png").out;
  for (const char* text : {"conv2d 2x8x8x3 * 32x3x3x3", "group_norm_backward", "adamw",
                           "outside of kernels", "floor"}) {
    EXPECT_THAT(profile, HasSubstr(text));
  }
  EXPECT_THAT(read_file(work() / "profile.png"), testing::StartsWith("\x89PNG"));
  EXPECT_THAT(refusal("bench --mode trian"), HasSubstr("did you mean 'train'?"));
  EXPECT_THAT(refusal("bench --steps 0"), HasSubstr("--steps is 0"));
  EXPECT_THAT(refusal("bench --picture p.png"), HasSubstr("--profile"));
  EXPECT_THAT(refusal("bench --class_cond"), HasSubstr("--num_classes"));
}

TEST_F(CommandTest, Float16IsForAGpu) {
  for (const char* command : {"train --data here --out run", "bench"}) {
    EXPECT_THAT(refusal(std::string(command) + " --device cpu --precision fp16"),
                HasSubstr("--precision fp16: cpu has no kernels for float16, a GPU has (--device "
                          "cuda); here there are fp32 and bf16"));
    EXPECT_THAT(refusal(std::string(command) + " --precision fp-16"),
                HasSubstr("did you mean 'fp16'?"));
  }
  EXPECT_FALSE(std::filesystem::exists(work() / "run"));
}

TEST_F(CommandTest, MistypedNamesAreAnsweredWithTheNearestValidOne) {
  EXPECT_THAT(refusal("trian"), HasSubstr("did you mean 'train'?"));
  EXPECT_THAT(refusal("train --num_chanels 64"),
              HasSubstr("unknown flag '--num_chanels'; did you mean '--num_channels'?"));
  EXPECT_THAT(refusal("train --noise_schedule cosin"), HasSubstr("did you mean 'cosine'?"));
  EXPECT_THAT(refusal("train --preset smal"), HasSubstr("did you mean 'small'?"));
  EXPECT_THAT(refusal("train --preset gigantic"), HasSubstr("one of: small, medium, cifar"));
  EXPECT_THAT(refusal("train --schedule_sampler=loss-second"),
              HasSubstr("did you mean 'loss-second-moment'?"));
  EXPECT_THAT(refusal("train --learn_sigma Ture"), HasSubstr("did you mean 'True'?"));
  EXPECT_THAT(refusal("train --learn_sigma=maybe"), HasSubstr("neither True nor False"));
  EXPECT_THAT(refusal("sample --sead 3"), HasSubstr("did you mean '--seed'?"));
}

TEST_F(CommandTest, ValuesThatAreMissingOrOfTheWrongKindAreRefused) {
  EXPECT_THAT(refusal("train --lr"), HasSubstr("--lr needs a value"));
  EXPECT_THAT(refusal("train --lr --steps 3"), HasSubstr("--lr needs a value"));
  EXPECT_THAT(refusal("train --lr fast"), HasSubstr("--lr: 'fast' is not a number"));
  EXPECT_THAT(refusal("train --lr nan"), HasSubstr("is not a number"));
  EXPECT_THAT(refusal("train --steps 3.5"), HasSubstr("--steps: '3.5' is not a whole number"));
  EXPECT_THAT(refusal("train --steps 99999999999999999999"), HasSubstr("is not a whole number"));
  EXPECT_THAT(refusal("train stray"), HasSubstr("unexpected argument 'stray'"));
  EXPECT_THAT(refusal("sample a b"), HasSubstr("unexpected argument 'b'"));
}

TEST_F(CommandTest, ADeviceThatIsNotThereIsRefusedWithTheReason) {
  EXPECT_THAT(refusal("train --data fashion-mnist --out run --device gpu"),
              HasSubstr("--device: 'gpu' is none of: auto, cpu, cuda, cuda:N"));
  for (const char* command : {"train --data fashion-mnist --out run", "sample run"}) {
    EXPECT_THAT(refusal(std::string(command) + " --device cuda:99"),
                AllOf(HasSubstr("--device cuda:99: "),
                      testing::AnyOf(HasSubstr("built without CUDA"), HasSubstr("no NVIDIA"),
                                     HasSubstr("no such GPU"))));
  }
}

#if defined(__linux__) && !defined(__clang__)
TEST_F(CommandTest, StartsAnewForThreadsThatSpinShortly) {
  const auto spin = [&](const std::string& environment) {
    const std::string command = fmt::format(
        "env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT OMP_DISPLAY_ENV=verbose {0} '{1}' "
        "info 'no such file' >'{2}/out' 2>'{2}/err'",
        environment, MUTILDE_BINARY, folder_.string());
    EXPECT_NE(std::system(command.c_str()), 0);
    return read_file(folder_ / "err");
  };
  if (spin("").find("OPENMP DISPLAY") == std::string::npos)
    GTEST_SKIP() << "the program was built without OpenMP";
  EXPECT_THAT(spin(""), AllOf(HasSubstr("GOMP_SPINCOUNT = '10000'"),
                              HasSubstr("no such file: there is neither")));
  EXPECT_THAT(spin("GOMP_SPINCOUNT=77"), HasSubstr("GOMP_SPINCOUNT = '77'"));
}
#endif

TEST_F(CommandTest, TrainingRefusesBadSettingsAndBadData) {
  make_images("images", 3, 8);
  fs::create_directories(work() / "empty");
  fs::create_directories(work() / "fake");
  std::ofstream(work() / "fake" / "text_1.png") << "this is no picture";
  fs::create_directories(work() / "unlabelled");
  fs::copy(work() / "images" / "cat_0.png", work() / "unlabelled" / "cat.png");
  const std::string tiny =
      "--image_size 8 --num_channels 32 --channel_mult 1 --num_res_blocks 1 --steps 1 ";
  EXPECT_THAT(refusal("train --out run"), HasSubstr("--data is missing"));
  EXPECT_THAT(refusal("train --data images"), HasSubstr("--out is missing"));
  EXPECT_THAT(refusal("train --data nowhere --out run " + tiny), HasSubstr("nowhere"));
  EXPECT_THAT(refusal("train --data empty --out run " + tiny), HasSubstr("empty"));
  EXPECT_THAT(refusal("train --data fake --out run " + tiny), HasSubstr("text_1.png"));
  EXPECT_THAT(refusal("train --data unlabelled --class_cond --out run " + tiny),
              HasSubstr("has no classes"));
  EXPECT_THAT(refusal("train --data images --class_cond --num_classes 2 --out run " + tiny),
              HasSubstr("3 classes"));
  EXPECT_THAT(refusal("train --data images --out run --image_size 8"), HasSubstr("channel_mult"));
  EXPECT_THAT(refusal("train --data images --out run --num_channels 40"),
              HasSubstr("multiple of 32"));
  EXPECT_THAT(refusal("train --data images --out run --num_heads 3 --preset small"),
              HasSubstr("3 heads"));
  // Settings are judged before the data is read.
  EXPECT_THAT(refusal("train --data nowhere --out run --num_heads 3 --preset small"),
              HasSubstr("num_heads is 3"));
  EXPECT_THAT(refusal("train --data nowhere --out run --diffusion_steps 10 " + tiny),
              HasSubstr("diffusion_steps is 10, at least 21"));
  EXPECT_THAT(refusal("train --data nowhere --out run --timestep_respacing ddim7000 " + tiny),
              HasSubstr("7000"));
  EXPECT_THAT(refusal("train --data nowhere --out run --ema_rate 0.9,0.9 " + tiny),
              HasSubstr("0.9 is given twice"));
  EXPECT_THAT(refusal("train --data images --out run --num_samples 4611686018427387904 " + tiny),
              HasSubstr("at most 10000"));
  EXPECT_THAT(refusal("train --data images --out run --learn_sigma --sigma_small"),
              HasSubstr("contradict"));
  EXPECT_THAT(refusal("train --data images --out run --batch_size 0"),
              HasSubstr("batch_size is 0"));
  EXPECT_THAT(refusal("train --data images --out run --lr -1"), HasSubstr("lr is -1"));
  EXPECT_THAT(refusal("train --data images --out run --diffusion_steps 10 " + tiny),
              HasSubstr("linear"));
  EXPECT_THAT(refusal("train --data images --out run --timestep_respacing ddim7000 " + tiny),
              HasSubstr("7000"));
  EXPECT_THAT(refusal("train --data images --out run --small_size 5 " + tiny),
              HasSubstr("small_size 5"));
  EXPECT_THAT(refusal("train --data images --out run --keep -1 " + tiny), HasSubstr("--keep"));
  EXPECT_THAT(refusal("train --data images --out images " + tiny), HasSubstr("not empty"));
  EXPECT_THAT(refusal("train --data images --out images/cat_0.png " + tiny),
              HasSubstr("not a folder"));
  EXPECT_THAT(refusal("train --resume nowhere.safetensors"), HasSubstr("nowhere.safetensors"));
  EXPECT_THAT(refusal("train --resume empty"), HasSubstr("no checkpoint_"));
  EXPECT_THAT(refusal("info nowhere"),
              HasSubstr("error: nowhere: there is neither a checkpoint nor a run folder"));
  EXPECT_THAT(refusal("info fake/text_1.png"), HasSubstr("not a safetensors file"));
}

class CheckpointCommandTest : public CommandTest {
 protected:
  void SetUp() override {
    CommandTest::SetUp();
    make_images("images", 4, 8);
    succeed(
        "train --data images --out run --image_size 8 --num_channels 32 --channel_mult 1,1 "
        "--num_res_blocks 1 --attention_resolutions 4 --num_heads 2 --diffusion_steps 40 "
        "--batch_size 2 --steps 1 --sample_interval 0");
  }

  fs::path checkpoint() const { return work() / "run" / "checkpoint_000001.safetensors"; }
};

TEST_F(CheckpointCommandTest, ContradictionsWithTheCheckpointAreRefused) {
  EXPECT_THAT(refusal("train --resume run --steps 2 --num_channels 64"),
              HasSubstr("--num_channels 64 contradicts"));
  EXPECT_THAT(refusal("train --resume run --steps 2 --noise_schedule cosine"),
              HasSubstr("trained with 'linear'"));
  EXPECT_THAT(refusal("train --resume run --steps 2 --ema_rate 0.5"), HasSubstr("--ema_rate"));
  EXPECT_THAT(refusal("train --resume run --steps 2 --preset small"), HasSubstr("--preset"));
  EXPECT_THAT(refusal("train --resume run --steps 2 --overwrite"), HasSubstr("--overwrite"));
  EXPECT_THAT(refusal("train --resume run"), HasSubstr("at step 1 of 1"));
  EXPECT_THAT(refusal("train --data images --out run --image_size 32"),
              HasSubstr("--resume run goes on"));
  EXPECT_THAT(refusal("sample run --num_channels 64"), HasSubstr("--num_channels"));
}

TEST_F(CheckpointCommandTest, SamplingRefusesFlagsThatDoNotFit) {
  EXPECT_THAT(refusal("sample"), HasSubstr("a checkpoint is missing"));
  EXPECT_THAT(refusal("sample nowhere.safetensors"), HasSubstr("nowhere.safetensors"));
  EXPECT_THAT(refusal("sample images"), HasSubstr("no checkpoint_"));
  EXPECT_THAT(refusal("sample run --eta 0.5"), HasSubstr("--use_ddim"));
  EXPECT_THAT(refusal("sample run --use_ddim --eta 2"), HasSubstr("--eta is 2"));
  EXPECT_THAT(refusal("sample run --use_raw --ema_rate 0.9999"), HasSubstr("contradict"));
  EXPECT_THAT(refusal("sample run --ema_rate 0.5"), HasSubstr("no average of rate 0.5"));
  EXPECT_THAT(refusal("sample run --num_samples 0"), HasSubstr("--num_samples is 0"));
  EXPECT_THAT(refusal("sample run --num_samples 4611686018427387904"),
              HasSubstr("--num_samples is 4611686018427387904, at most 10000000 expected"));
  EXPECT_THAT(refusal("sample run --batch_size 4611686018427387904"), HasSubstr("--batch_size is"));
  EXPECT_THAT(refusal("sample run --class 1"), HasSubstr("knows no classes"));
  EXPECT_THAT(refusal("sample run --low_res images"), HasSubstr("no super-resolution"));
  EXPECT_THAT(refusal("sample run --timestep_respacing 41"), HasSubstr("41"));
  EXPECT_THAT(refusal("sample run --timestep_respacing soon"), HasSubstr("soon"));
  EXPECT_THAT(refusal("sample run --out nowhere/x.png"), HasSubstr("there is no folder nowhere"));
  EXPECT_THAT(refusal("sample run --out images"), HasSubstr("this is a folder"));
  EXPECT_THAT(refusal("sample run --png_dir images/cat_0.png"), HasSubstr("not a folder"));
}

TEST_F(CheckpointCommandTest, NllRefusesFlagsThatDoNotFit) {
  EXPECT_THAT(refusal("nll"), HasSubstr("a checkpoint is missing: mutilde nll CHECKPOINT"));
  EXPECT_THAT(refusal("nll nowhere"), HasSubstr("neither a checkpoint nor a run folder"));
  EXPECT_THAT(refusal("nll run --data nowhere"), HasSubstr("nowhere"));
  EXPECT_THAT(refusal("nll run --num_samples -1"), HasSubstr("--num_samples is -1"));
  EXPECT_THAT(refusal("nll run --batch_size 0"), HasSubstr("--batch_size is 0"));
  EXPECT_THAT(refusal("nll run --timestep_respacing 41"), HasSubstr("41"));
  EXPECT_THAT(refusal("nll run --image_size 8"), HasSubstr("says itself what its model is"));
  EXPECT_THAT(refusal("nll run --use_raw --ema_rate 0.5"), HasSubstr("contradict"));
  EXPECT_THAT(refusal("nll run --npz nowhere/x.npz"), HasSubstr("there is no folder nowhere"));
  EXPECT_THAT(refusal("nll run --plot images"), HasSubstr("this is a folder"));
  fs::rename(work() / "images", work() / "moved");
  EXPECT_THAT(refusal("nll run"), HasSubstr("images"));
  succeed("nll run --data moved --timestep_respacing 2 --num_samples 1");
}

TEST_F(CheckpointCommandTest, DamagedCheckpointsAreRefusedByEveryCommand) {
  const std::string good = read_file(checkpoint());
  const auto expect_refused = [&](const std::string& bytes, const char* what) {
    std::ofstream(work() / "bad.safetensors", std::ios::binary) << bytes;
    for (const char* command :
         {"info bad.safetensors", "sample bad.safetensors", "nll bad.safetensors",
          "train --steps 2 --resume bad.safetensors"}) {
      EXPECT_THAT(refusal(command), HasSubstr("bad.safetensors")) << what;
    }
  };
  expect_refused("", "empty");
  expect_refused(good.substr(0, 4), "cut in the length");
  expect_refused(good.substr(0, 400), "cut in the header");
  expect_refused(good.substr(0, good.size() - 3), "cut in the data");
  expect_refused(std::string(8, '\xff') + good.substr(8), "a header of 2^64 - 1 bytes");
  expect_refused(std::string("\x10\0\0\0\0\0\0\0", 8) + std::string(16, '['), "no JSON");
  std::string settings = good;
  settings.replace(settings.find("image_size"), 10, "image_sizo");
  expect_refused(settings, "an unknown setting");

  std::string renamed = good;  // the header is intact, but the network has no such parameter
  renamed.replace(renamed.find("\"out.2.bias"), 11, "\"out.7.bias");
  std::ofstream(work() / "bad.safetensors", std::ios::binary) << renamed;
  EXPECT_THAT(refusal("sample bad.safetensors"), HasSubstr("out.7.bias"));
}

TEST_F(CheckpointCommandTest, InfoShowsSettingsCountsAndForeignFiles) {
  const std::string info = succeed("info run").out;
  for (const char* text :
       {"step 1", "2 images seen", "input_blocks", "together", "ema_0.9999", "opt.second_moment",
        "model settings", "num_channels            32", "channel_mult            1,1"}) {
    EXPECT_THAT(info, HasSubstr(text));
  }
  write_safetensors(
      work() / "foreign.safetensors",
      {{"encoder.weight", Tensor::zeros({3, 5})}, {"encoder.bias", Tensor::zeros({3})}},
      {{"format", "pt"}});
  EXPECT_THAT(succeed("info foreign.safetensors").out,
              AllOf(HasSubstr("not written by mutilde"), HasSubstr("encoder"), HasSubstr("18"),
                    HasSubstr("format: pt")));
  EXPECT_THAT(refusal("sample foreign.safetensors"), HasSubstr("give the flags of its model"));
  EXPECT_THAT(refusal("sample foreign.safetensors --image_size 32"),
              HasSubstr("foreign.safetensors"));
  EXPECT_THAT(refusal("train --resume foreign.safetensors"), HasSubstr("has no settings"));
}

}  // namespace
}  // namespace mutilde::test
