// Checkpoints: what goes in comes out, a resumed run is the same run, and bad
// files end in one clear line.
#include "diffusion/checkpoint.h"

#include <cmath>
#include <cstdint>
#include <fstream>
#include <functional>
#include <iterator>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "support/reference.h"

namespace mutilde {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

Settings tiny_settings() {
  Settings settings;
  settings.image_size = 4;
  settings.num_channels = 32;
  settings.channel_mult = "1,1";
  settings.num_res_blocks = 1;
  settings.attention_resolutions = "2";
  settings.num_heads = 2;
  settings.diffusion_steps = 30;
  settings.dropout = 0.2;
  settings.class_cond = true;
  settings.num_classes = 3;
  settings.learn_sigma = true;
  settings.batch_size = 4;
  settings.lr = 1e-3;
  settings.lr_anneal_steps = 50;
  settings.ema_rate = "0.99,0.5";
  settings.schedule_sampler = "loss-second-moment";
  settings.seed = 7;
  return settings;
}

void train_step(Trainer& trainer) {
  Generator random(99, static_cast<uint64_t>(trainer.step_count()));
  const Tensor x_0 = random.uniform({4, 4, 4, 3}) * 2.0 - 1.0;
  trainer.step(x_0, random.integers({4}, 3));
}

std::string read_bytes(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_bytes(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("mutilde_checkpoint_test_{}", getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path path(const std::string& name) const { return folder_ / name; }

  /// The message of the FileError; it must be one line that names the file.
  static std::string refusal(const fs::path& file, const std::function<void()>& f) {
    try {
      f();
    } catch (const FileError& error) {
      EXPECT_THAT(error.what(), AllOf(HasSubstr(file.filename().string()), Not(HasSubstr("\n"))));
      return error.what();
    }
    return "(nothing was thrown)";
  }

  /// Every tensor and the metadata of a file, to be changed and written again.
  struct Contents {
    explicit Contents(const fs::path& path) {
      const SafetensorsFile file(path);
      metadata = file.metadata();
      for (const std::string& name : file.names()) tensors[name] = file.read(name);
    }
    void write(const fs::path& path) const {
      write_safetensors(path, {tensors.begin(), tensors.end()}, metadata);
    }
    std::map<std::string, Tensor> tensors;
    std::map<std::string, std::string> metadata;
  };

  fs::path folder_;
};

TEST_F(CheckpointTest, HoldsWeightsUnderTheOriginalsNamesInPyTorchsOrderOfAxes) {
  const Trainer trainer(tiny_settings());
  save_checkpoint(path("a.safetensors"), trainer);
  const SafetensorsFile file(path("a.safetensors"));
  EXPECT_EQ(file.shape("input_blocks.0.0.weight"), (Shape{32, 3, 3, 3}));
  EXPECT_EQ(file.shape("out.2.weight"), (Shape{6, 32, 3, 3}));
  EXPECT_EQ(file.shape("middle_block.1.qkv.weight"), (Shape{96, 32, 1}));
  EXPECT_EQ(file.shape("label_emb.weight"), (Shape{3, 128}));
  for (const char* prefix : {"ema_0.99.", "ema_0.5.", "opt.first_moment.", "opt.second_moment."}) {
    EXPECT_EQ(file.shape(prefix + std::string("out.2.weight")), (Shape{6, 32, 3, 3})) << prefix;
  }
}

TEST_F(CheckpointTest, KeepsEverySetting) {
  const Settings settings = tiny_settings();
  save_checkpoint(path("a.safetensors"), Trainer(settings));
  const Checkpoint checkpoint(path("a.safetensors"));
  ASSERT_TRUE(checkpoint.settings().has_value());
  EXPECT_EQ(*checkpoint.settings(), settings);
}

TEST_F(CheckpointTest, AResumedRunIsBitForBitTheRunThatNeverStopped) {
  Trainer whole(tiny_settings()), first_half(tiny_settings());
  for (int i = 0; i < 6; ++i) train_step(whole);
  for (int i = 0; i < 3; ++i) train_step(first_half);
  save_checkpoint(path("half.safetensors"), first_half);

  const Checkpoint checkpoint(path("half.safetensors"));
  EXPECT_EQ(checkpoint.step(), 3);
  Trainer resumed(*checkpoint.settings());
  checkpoint.restore(resumed);
  for (int i = 0; i < 3; ++i) train_step(resumed);

  save_checkpoint(path("whole.safetensors"), whole);
  save_checkpoint(path("resumed.safetensors"), resumed);
  // Weights, both averages, both moments, the sampler's losses, the step.
  EXPECT_TRUE(read_bytes(path("whole.safetensors")) == read_bytes(path("resumed.safetensors")));
}

// The gradient of the sum of losses, 2^lg / 4, is infinite in float32 down to lg = 130: some steps are
// skipped before the pause and some after.
TEST_F(CheckpointTest, AResumedRunGoesOnWithItsLossScale) {
  Trainer whole(tiny_settings()), first_half(tiny_settings());
  whole.scale_losses(133);
  first_half.scale_losses(133);
  for (int i = 0; i < 24; ++i) train_step(whole);
  for (int i = 0; i < 2; ++i) train_step(first_half);
  EXPECT_EQ(first_half.skipped_steps(), 2);
  save_checkpoint(path("half.safetensors"), first_half);

  Trainer resumed(tiny_settings());
  Checkpoint(path("half.safetensors")).restore(resumed);
  EXPECT_EQ(resumed.lg_loss_scale(), 131);
  EXPECT_EQ(resumed.skipped_steps(), 2);
  for (int i = 0; i < 22; ++i) train_step(resumed);
  EXPECT_GT(whole.skipped_steps(), 2);
  EXPECT_GT(whole.optimizer().step_count(), 0);

  save_checkpoint(path("whole.safetensors"), whole);
  save_checkpoint(path("resumed.safetensors"), resumed);
  EXPECT_TRUE(read_bytes(path("whole.safetensors")) == read_bytes(path("resumed.safetensors")));
}

TEST_F(CheckpointTest, CountsTheImagesWhenTheBatchSizeChanges) {
  Trainer trainer(tiny_settings());
  train_step(trainer);
  train_step(trainer);
  save_checkpoint(path("a.safetensors"), trainer);
  EXPECT_EQ(Checkpoint(path("a.safetensors")).images_seen(), 2 * 4);
  Settings settings = tiny_settings();
  settings.batch_size = 3;
  Trainer resumed(settings);
  Checkpoint(path("a.safetensors")).restore(resumed);
  Generator random(5);
  resumed.step(random.uniform({3, 4, 4, 3}) * 2.0 - 1.0, random.integers({3}, 3));
  save_checkpoint(path("b.safetensors"), resumed);
  EXPECT_EQ(Checkpoint(path("b.safetensors")).images_seen(), 2 * 4 + 3);
}

TEST_F(CheckpointTest, ALoadedModelHasTheFirstAverageOrTheOneThatIsAskedFor) {
  Trainer trainer(tiny_settings());
  for (int i = 0; i < 3; ++i) train_step(trainer);
  save_checkpoint(path("a.safetensors"), trainer);
  const auto expect_weights = [](const LoadedModel& model,
                                 const std::vector<NamedParameter>& wanted) {
    const auto parameters = model.unet->named_parameters();
    for (size_t i = 0; i < wanted.size(); ++i) {
      EXPECT_TRUE(test::close(parameters[i].value, wanted[i].value, 0)) << wanted[i].name;
    }
  };
  const LoadedModel average = load_model(path("a.safetensors"));
  EXPECT_EQ(average.weights, "ema_0.99");
  EXPECT_EQ(average.step, 3);
  expect_weights(average, trainer.optimizer().ema(0));
  LoadOptions options;
  options.ema_rate = 0.5;
  expect_weights(load_model(path("a.safetensors"), options), trainer.optimizer().ema(1));
  options = {};
  options.use_raw = true;
  expect_weights(load_model(path("a.safetensors"), options), trainer.optimizer().parameters());
  options = {};
  options.ema_rate = 0.9;
  EXPECT_THROW(load_model(path("a.safetensors"), options), Error);
}

TEST_F(CheckpointTest, AStateDictThatSomebodyElseSavedLoadsByName) {
  const Settings settings = tiny_settings();
  Generator random(3);
  const auto unet = make_unet(settings, random);
  write_safetensors(path("foreign.safetensors"), state_dict(unet->named_parameters()));

  LoadOptions options;
  EXPECT_THROW(load_model(path("foreign.safetensors"), options), Error);  // no settings anywhere
  options.settings = settings;
  options.settings->num_classes = 0;  // read off the embedding's shape
  const LoadedModel model = load_model(path("foreign.safetensors"), options);
  EXPECT_EQ(model.weights, "raw");
  EXPECT_EQ(model.settings.num_classes, 3);
  const Tensor x = random.normal({2, 4, 4, 3}), t = Tensor::from<int64_t>({2}, {3, 20});
  const Tensor y = Tensor::from<int64_t>({2}, {0, 2});
  const NoGrad no_grad;
  EXPECT_TRUE(test::close(model.unet->forward(x, t, y), unet->forward(x, t, y), 0));

  options.settings->num_res_blocks = 2;
  EXPECT_THAT(refusal(path("foreign.safetensors"),
                      [&] { load_model(path("foreign.safetensors"), options); }),
              HasSubstr("parameter 'input_blocks"));
}

TEST_F(CheckpointTest, AFileCutShortAnywhereIsRefused) {
  save_checkpoint(path("a.safetensors"), Trainer(tiny_settings()));
  const std::string bytes = read_bytes(path("a.safetensors"));
  for (size_t length :
       {size_t{0}, size_t{7}, size_t{8}, size_t{1000}, bytes.size() / 2, bytes.size() - 1}) {
    write_bytes(path("cut.safetensors"), bytes.substr(0, length));
    EXPECT_NE(refusal(path("cut.safetensors"), [&] { load_model(path("cut.safetensors")); }),
              "(nothing was thrown)")
        << length;
  }
}

TEST_F(CheckpointTest, MissingUnknownAndMisshapenTensorsAreNamed) {
  save_checkpoint(path("a.safetensors"), Trainer(tiny_settings()));
  const Contents good(path("a.safetensors"));
  const auto refusal_of = [&](const Contents& contents) {
    contents.write(path("bad.safetensors"));
    return refusal(path("bad.safetensors"), [&] {
      const Checkpoint checkpoint(path("bad.safetensors"));
      Trainer trainer(*checkpoint.settings());
      checkpoint.restore(trainer);
    });
  };
  for (const char* name : {"out.2.bias", "ema_0.5.out.2.bias", "opt.first_moment.out.2.bias",
                           "opt.second_moment.out.2.bias"}) {
    Contents missing = good;
    missing.tensors.erase(name);
    EXPECT_THAT(refusal_of(missing), HasSubstr("out.2.bias' is missing")) << name;
    Contents misshapen = good;
    misshapen.tensors[name] = Tensor::zeros({5});
    EXPECT_THAT(refusal_of(misshapen),
                AllOf(HasSubstr("out.2.bias"), HasSubstr("[5]"), HasSubstr("[6]")))
        << name;
    Contents whole_numbers = good;
    whole_numbers.tensors[name] = Tensor::zeros({6}, DType::kInt64);
    EXPECT_THAT(refusal_of(whole_numbers), HasSubstr("int64")) << name;
  }
  Contents unknown = good;
  unknown.tensors["output_blocks.77.weight"] = Tensor::zeros({1});
  EXPECT_THAT(refusal_of(unknown), HasSubstr("output_blocks.77.weight"));
  Contents no_sampler = good;
  std::erase_if(no_sampler.tensors,
                [](const auto& entry) { return entry.first.starts_with("sampler."); });
  EXPECT_NE(refusal_of(no_sampler), "(nothing was thrown)");
}

TEST_F(CheckpointTest, AFailedRestoreOfWeightsChangesNoWeight) {
  save_checkpoint(path("a.safetensors"), Trainer(tiny_settings()));
  Contents bad(path("a.safetensors"));
  bad.tensors.erase("out.2.bias");
  bad.write(path("bad.safetensors"));
  Settings settings = tiny_settings();
  settings.seed = 8;
  Trainer trainer(settings);
  const auto before = state_dict(trainer.optimizer().parameters());
  EXPECT_THROW(Checkpoint(path("bad.safetensors")).load_weights(trainer.unet()), FileError);
  const auto after = state_dict(trainer.optimizer().parameters());
  for (size_t i = 0; i < before.size(); ++i)
    EXPECT_TRUE(test::close(after[i].second, before[i].second, 0));
}

TEST_F(CheckpointTest, HostileSettingsAreRefusedBeforeTheyCostMemory) {
  save_checkpoint(path("a.safetensors"), Trainer(tiny_settings()));
  const Contents good(path("a.safetensors"));
  const auto refusal_of = [&](const std::string& key, const std::string& value) {
    Contents contents = good;
    contents.metadata[key] = value;
    contents.write(path("bad.safetensors"));
    return refusal(path("bad.safetensors"), [&] { load_model(path("bad.safetensors")); });
  };
  const auto with_settings = [&](const std::string& json) {
    return refusal_of("mutilde.settings", json);
  };
  EXPECT_THAT(with_settings("not JSON"), HasSubstr("JSON"));
  EXPECT_THAT(with_settings("[1]"), HasSubstr("JSON object"));
  EXPECT_THAT(with_settings(R"({"model": 3})"), HasSubstr("'model'"));
  EXPECT_THAT(with_settings(R"({"model": {"colour": 3}})"), HasSubstr("unknown key 'colour'"));
  EXPECT_THAT(with_settings(R"({"model": {"lr": 3}})"),
              HasSubstr("unknown key 'lr'"));  // it is training's
  EXPECT_THAT(with_settings(R"({"model": {"image_size": "32"}})"),
              HasSubstr("a whole number expected"));
  EXPECT_THAT(with_settings(R"({"model": {"image_size": 3.5}})"),
              HasSubstr("a whole number expected"));
  EXPECT_THAT(with_settings(R"({"model": {"learn_sigma": 1}})"),
              HasSubstr("true or false expected"));
  EXPECT_THAT(with_settings(R"({"model": {"image_size": -4}})"), HasSubstr("image_size is -4"));
  EXPECT_THAT(with_settings(R"({"model": {"image_size": 99999999999999999999}})"),
              HasSubstr("image_size"));
  EXPECT_THAT(with_settings(R"({"model": {"num_channels": 33}})"), HasSubstr("multiple of 32"));
  EXPECT_THAT(with_settings(R"({"diffusion": {"noise_schedule": "x"}})"),
              HasSubstr("linear, cosine"));
  EXPECT_THAT(with_settings(
                  R"({"model": {"image_size": 4, "channel_mult": "1,64", "num_channels": 8192}})"),
              HasSubstr("does not fit"));
  EXPECT_THAT(refusal_of("mutilde.state", R"({"step": -1})"), HasSubstr("step"));
  EXPECT_THAT(refusal_of("mutilde.state", R"({"step": "3"})"), HasSubstr("step"));
  EXPECT_THAT(refusal_of("mutilde.state", R"({"step": 3, "images": -1})"), HasSubstr("images"));
  EXPECT_THAT(refusal_of("mutilde.state", R"({"step": 9223372036854775807})"),
              HasSubstr("a step of 9223372036854775807"));
}

TEST_F(CheckpointTest, HostileHeadersAreRefused) {
  const auto refused = [&](const std::string& header, uint64_t length, size_t data) {
    std::string bytes(reinterpret_cast<const char*>(&length), 8);  // little-endian, as the format
    bytes += header + std::string(data, '\0');
    write_bytes(path("bad.safetensors"), bytes);
    return refusal(path("bad.safetensors"), [&] { load_model(path("bad.safetensors")); }) !=
           "(nothing was thrown)";
  };
  const auto one = [&](const std::string& header, size_t data) {
    return refused(header, header.size(), data);
  };
  EXPECT_TRUE(refused("{}", UINT64_MAX, 0));
  EXPECT_TRUE(refused("{}", uint64_t{1} << 40, 0));
  EXPECT_TRUE(one(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4));
  EXPECT_TRUE(one(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}})", 4));
  EXPECT_TRUE(
      one(R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0));
  EXPECT_TRUE(one(
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
      12));
}

TEST(Settings, JsonKeepsThemAndFillsInWhatItLeavesOut) {
  Settings settings = tiny_settings();
  settings.data = "photos \"of\" \xC3\xA9t\xC3\xA9";
  EXPECT_EQ(settings_from_json(to_json(settings)), settings);
  EXPECT_EQ(settings_from_json("{}"), Settings());
}

TEST(Settings, ContradictionsAreNamed) {
  const auto message = [](const std::function<void(Settings&)>& change) -> std::string {
    Settings settings;
    change(settings);
    try {
      validate(settings);
    } catch (const Error& error) {
      return error.what();
    }
    return "(nothing was thrown)";
  };
  EXPECT_EQ(message([](Settings&) {}), "(nothing was thrown)");
  EXPECT_THAT(message([](Settings& s) { s.learn_sigma = s.sigma_small = true; }),
              HasSubstr("contradict"));
  EXPECT_THAT(message([](Settings& s) { s.num_classes = 10; }), HasSubstr("class_cond"));
  EXPECT_THAT(message([](Settings& s) { s.small_size = 64; }), HasSubstr("small_size 64"));
  EXPECT_THAT(message([](Settings& s) { s.small_size = 24; }), HasSubstr("small_size 24"));
  EXPECT_THAT(message([](Settings& s) { s.image_size = 100; }), HasSubstr("give one"));
  EXPECT_THAT(message([](Settings& s) { s.channel_mult = "2,4"; }), HasSubstr("starts with 2"));
  EXPECT_THAT(message([](Settings& s) { s.channel_mult = "1,,2"; }),
              HasSubstr("channel_mult is '1,,2'"));
  EXPECT_THAT(message([](Settings& s) { s.image_size = 36, s.channel_mult = "1,2,2,2"; }),
              HasSubstr("halve evenly 3"));
  EXPECT_THAT(message([](Settings& s) { s.ema_rate = "0.9,1"; }), HasSubstr("ema_rate '0.9,1'"));
  EXPECT_THAT(message([](Settings& s) { s.ema_rate = "0.9,0.99,0.90"; }),
              HasSubstr("0.9 is given twice"));
  EXPECT_THAT(message([](Settings& s) { s.num_heads = 3; }),
              HasSubstr("num_heads is 3: 512 channels do not divide"));
  EXPECT_THAT(message([](Settings& s) { s.num_heads = 8, s.num_heads_upsample = 5; }),
              HasSubstr("num_heads_upsample is 5: 384 channels"));
  EXPECT_EQ(message([](Settings& s) { s.num_heads_upsample = 5, s.attention_resolutions = "7"; }),
            "(nothing was thrown)");  // no level has it
  EXPECT_THAT(message([](Settings& s) { s.diffusion_steps = 20; }),
              HasSubstr("diffusion_steps is 20, at least 21"));
  EXPECT_EQ(message([](Settings& s) { s.diffusion_steps = 20, s.noise_schedule = "cosine"; }),
            "(nothing was thrown)");
  EXPECT_THAT(message([](Settings& s) { s.timestep_respacing = "ddim7000"; }), HasSubstr("7000"));
  EXPECT_THAT(message([](Settings& s) { s.steps = 9, s.lr_anneal_steps = 8; }),
              HasSubstr("beyond"));
  EXPECT_THAT(message([](Settings& s) { s.microbatch = 0; }), HasSubstr("microbatch is 0"));
  EXPECT_THAT(message([](Settings& s) { s.lr = NAN; }), HasSubstr("lr is nan"));
}

TEST(Settings, ChannelsAndAttentionFollowTheImageSizeAsInTheOriginal) {
  Settings settings;
  EXPECT_THAT(unet_config(settings).channel_mult, testing::ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(unet_config(settings).attention_downsampling, testing::ElementsAre(4, 8));
  settings.image_size = 256;
  EXPECT_THAT(unet_config(settings).channel_mult, testing::ElementsAre(1, 1, 2, 2, 4, 4));
  settings.image_size = 32;
  settings.attention_resolutions = "16";
  EXPECT_THAT(unet_config(settings).channel_mult, testing::ElementsAre(1, 2, 2, 2));
  EXPECT_THAT(unet_config(settings).attention_downsampling, testing::ElementsAre(2));
}

TEST(Settings, PresetsHaveAsManyParametersAsTheyShould) {
  // Counted in the original program.
  const std::pair<const char*, double> presets[] = {{"small", 1.24e6}, {"medium", 9.93e6}};
  for (const auto& [name, parameters] : presets) {
    Settings settings;
    apply_preset(settings, name);
    Generator random;
    EXPECT_NEAR(static_cast<double>(make_unet(settings, random)->parameter_count()), parameters,
                0.005 * parameters);
  }
  Settings settings;
  apply_preset(settings, "cifar");
  EXPECT_EQ(unet_config(settings).out_channels, 6);
  EXPECT_THROW(apply_preset(settings, "huge"), Error);
}

}  // namespace
}  // namespace mutilde
