// mutilde nll: its numbers against bits_per_dim, called here.
#include <chrono>
#include <cmath>
#include <map>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "app/sampling.h"
#include "data/codec.h"
#include "data/dataset.h"
#include "data/npz.h"
#include "diffusion/checkpoint.h"
#include "diffusion/losses.h"
#include "running.h"

namespace mutilde::test {
namespace {

using testing::HasSubstr;

const char* const kTiny =
    " --image_size 8 --num_channels 32 --channel_mult 1,1 --num_res_blocks 1"
    " --attention_resolutions 4 --num_heads 2 --diffusion_steps 40 --batch_size 4";

/// bits_per_dim of the first N pictures, one at a time, as the command names them: "total" and "prior"
/// (means), and [T] each "vb", "mse", "xstart_mse".
std::map<std::string, std::vector<double>> bits_of_pictures(const fs::path& run,
                                                            const fs::path& pictures, int64_t N,
                                                            const std::string& respacing) {
  const LoadedModel model = load_model(run);
  const SpacedDiffusion diffusion = make_diffusion(model.settings, respacing);
  const int size = static_cast<int>(model.settings.image_size);
  const auto dataset = open_dataset(pictures.string(), size);
  std::map<std::string, std::vector<double>> means;
  for (int64_t i = 0; i < N; ++i) {
    const Tensor pixels = Tensor::empty({1, size, size, 3}, DType::kUInt8);
    dataset->get(i, pixels.values<uint8_t>());
    const Tensor y = Tensor::from<int64_t>({1}, {dataset->label(i)});
    const Model network = [&](const Tensor& x_t, const Tensor& t) {
      return model.unet->forward(x_t, t, model.settings.class_cond ? y : Tensor());
    };
    const BitsPerDim bits =
        bits_per_dim(diffusion, network, from_uint8(pixels), app::noise_by_image(3, i, 1));
    for (const auto& [name, part] :
         {std::pair{"total", bits.total}, std::pair{"prior", bits.prior}, std::pair{"vb", bits.vlb},
          std::pair{"mse", bits.eps_mse}, std::pair{"xstart_mse", bits.x_0_mse}}) {
      const std::vector<double> values = part.to_vector<double>();
      means[name].resize(values.size());
      for (size_t k = 0; k < values.size(); ++k)
        means[name][k] += values[k] / static_cast<double>(N);
    }
  }
  return means;
}

// An image's float32 numbers are the same bits in any batch; means of 5 in float64, summed in another
// order, differ by at most 5 roundings on either side. Printed are 4 digits, or 4 decimals.
TEST_F(CommandTest, NllPrintsBitsPerDimOfTheFirstImages) {
  make_images("images", 7, 8);
  for (const std::string kind : {"--learn_sigma", "--class_cond --ema_rate 0.5"}) {
    succeed("train --data images --out run --overwrite --lr 1e-2 --steps 3 --sample_interval 0 " +
            kind + kTiny);
    const std::string nll = "nll run --device cpu --seed 3 --timestep_respacing 12 ";
    const Result result =
        succeed(nll + "--num_samples 5 --batch_size 2 --npz a.npz --plot plot.png");
    const auto wanted =
        bits_of_pictures(work() / "run/checkpoint_000003.safetensors", work() / "images", 5, "12");
    EXPECT_THAT(result.out, HasSubstr("mean of 5 images"));
    const auto printed = [&](const std::string& name) {
      const size_t at = result.out.find(name);
      return at == result.out.npos ? NAN : std::stod(result.out.substr(at + name.size()));
    };
    const double total = wanted.at("total")[0], prior = wanted.at("prior")[0];
    const double L_0 = wanted.at("vb").back();
    const auto near = [](double x) { return testing::DoubleNear(x, 5.01e-4 * std::abs(x)); };
    EXPECT_THAT(printed("bits per dimension"), testing::DoubleNear(total, 5.01e-5));
    EXPECT_THAT(printed("the prior"), near(prior));
    EXPECT_THAT(printed("L_1 to L_T-1"), near(total - prior - L_0));
    EXPECT_THAT(printed("  L_0"), near(L_0));
    for (const char* name : {"vb", "mse", "xstart_mse"}) {
      double mean = 0;
      const auto written = read_npz(work() / "a.npz", name).to_vector<double>();
      ASSERT_EQ(written.size(), 12U) << name;
      for (size_t i = 0; i < 12; ++i) {
        const double value = wanted.at(name)[i];
        EXPECT_NEAR(written[i], value, 10 * 0x1p-53 * std::abs(value)) << name << " " << i;
        mean += value / 12;
      }
      EXPECT_THAT(printed(std::string("  ") + name + " "), near(mean)) << name;
    }
    const auto t = read_npz(work() / "a.npz", "t").to_vector<int64_t>();
    EXPECT_EQ(t.front(), 39);
    EXPECT_EQ(t.back(), 0);
    EXPECT_EQ(load_image(work() / "plot.png").width, 960);

    // All of them, from where they were; another batch size; another seed.
    const std::string all = succeed(nll + "--num_samples 0").out;
    EXPECT_THAT(all, HasSubstr("mean of 7 images"));
    EXPECT_EQ(succeed(nll + "--batch_size 7 --data images").out, all);
    EXPECT_NE(succeed(nll + "--seed 4").out, all);
    EXPECT_NE(succeed(nll + "--use_raw").out, all);
    EXPECT_NE(succeed(nll + "--clip_denoised False").out, all);
  }
}

TEST_F(CommandTest, AnInterruptedNllTellsOfTheImagesSoFar) {
  make_images("images", 200, 8);
  succeed(std::string("train --data images --out run --steps 1 --sample_interval 0") + kTiny);
  const std::string command = fmt::format(
      "cd '{0}/work' && exec '{1}' nll run --batch_size 1 --npz terms.npz >'{0}/out' 2>'{0}/err'",
      folder_.string(), MUTILDE_BINARY);
  const pid_t child = fork();
  if (child == 0) {
    execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    _exit(127);
  }
  for (int i = 0; i < 1000 && read_file(folder_ / "err").find(" bits/dim") == std::string::npos;
       ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  kill(child, SIGINT);
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 130);
  const std::string err = read_file(folder_ / "err");
  const size_t start = err.find("stopped after ");
  ASSERT_NE(start, std::string::npos) << err;
  const int done = std::stoi(err.substr(start + 14));
  EXPECT_THAT(read_file(folder_ / "out"), HasSubstr(fmt::format("mean of {} image", done)));
  EXPECT_EQ(read_npz(work() / "terms.npz", "vb").shape(), Shape{40});
}

}  // namespace
}  // namespace mutilde::test
