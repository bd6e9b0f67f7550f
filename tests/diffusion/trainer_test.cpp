// Whole training steps against those of the original program, and what a step promises beside that.
#include "diffusion/trainer.h"

#include <cmath>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/reference.h"

namespace mutilde {
namespace {

using test::Reference;

/// The small network of the reference's training files.
Settings reference_settings() {
  Settings settings;
  settings.image_size = 8;
  settings.num_channels = 32;
  settings.channel_mult = "1,1";
  settings.num_res_blocks = 1;
  settings.attention_resolutions = "4";
  settings.num_heads = 1;
  settings.use_scale_shift_norm = false;
  settings.rescale_timesteps = false;
  settings.rescale_learned_sigmas = false;
  settings.lr = 1e-3;
  settings.weight_decay = 0.01;
  settings.ema_rate = "0.9";
  settings.ema_warmup = false;
  settings.batch_size = 4;
  return settings;
}

void load_start(const Trainer& trainer, const Reference& reference) {
  const auto find = [&](const std::string& name) { return reference.read("param." + name); };
  load_state_dict(trainer.optimizer().parameters(), find);
  load_state_dict(trainer.optimizer().ema(0), find);
}

TrainingBatch recorded_batch(const Reference& reference, int step) {
  const std::string prefix = fmt::format("step{}.", step);
  TrainingBatch batch;
  batch.x_0 = reference.read_images(prefix + "x_0");
  batch.t = reference.read(prefix + "t");
  batch.eps = reference.read_images(prefix + "noise");
  batch.weights = Tensor::full({batch.size()}, 1);
  return batch;
}

double norm(const Tensor& x) {
  double total = 0;
  for (double value : x.to_vector<double>()) total += value * value;
  return std::sqrt(total);
}

/// How far AdamW can have carried an element: about lr a step.
struct Reach {
  double parameters = 0, averages = 0;

  void add_step(double lr, double ema_rate) {
    parameters += lr;
    averages = ema_rate * averages + (1 - ema_rate) * parameters;
  }
};

/// qkv.bias holds q, then k, then v of each head. Softmax ignores a constant that is added to all
/// logits of a row, so k's part has no gradient, and no more to say than other zero gradients.
void expect_final_qkv_bias(const Reference& reference, const std::string& kind,
                           const std::string& name, const Tensor& value, int64_t heads,
                           double atol) {
  const int64_t D = value.numel() / (3 * heads);
  const Tensor first = reference.read(kind + "_first." + name);
  EXPECT_TRUE(test::close(value.slice(0, D), first.slice(0, D), 0, atol)) << kind << " q " << name;
  if (heads > 1) return;
  // The first values are q and k, so that v's norm is what they leave of the whole one.
  ASSERT_EQ(first.numel(), 2 * D);
  const double whole = reference.read(kind + "_norm." + name).item(), others = norm(first);
  EXPECT_NEAR(norm(value.slice(2 * D, 3 * D)), std::sqrt(whole * whole - others * others),
              atol * std::sqrt(static_cast<double>(D)))
      << kind << " v " << name;
}

/// Parameters after the last step: the first values of each, and its norm. Those whose true
/// gradient is zero are left out: AdamW divides round-off by its own size there, so each step moves
/// them by lr in either direction.
///
/// The tolerance: a step is lr m / sqrt(v), so an error of a gradient's element counts relative to
/// the element. Float32 sums in another order agree to some 1e-6 of the largest element, which for
/// one a thousandth of it is 1e-3 of a step; and a parameter of size 1 is rounded by 6e-8 a step,
/// 3e-4 of what an average moves in five. An average of another rate, or with a step less, would be
/// wrong by a tenth of its reach or more.
void expect_final(const Reference& reference, const std::string& kind,
                  const std::vector<NamedParameter>& parameters, int64_t heads,
                  const std::set<std::string>& zero_gradient, double reach) {
  const double atol = 0.005 * reach;
  int compared = 0;
  for (const auto& [name, value] : state_dict(parameters)) {
    if (zero_gradient.contains(name)) continue;
    ++compared;
    if (name.ends_with("qkv.bias")) {
      expect_final_qkv_bias(reference, kind, name, value, heads, atol);
      continue;
    }
    const Tensor first = reference.read(kind + "_first." + name);
    const Tensor ours = value.reshape({value.numel()}).slice(0, first.numel());
    EXPECT_TRUE(test::close(ours, first, 0, atol)) << kind << " " << name;
    const double wanted = reference.read(kind + "_norm." + name).item();
    EXPECT_NEAR(norm(value), wanted, atol * std::sqrt(static_cast<double>(value.numel())))
        << kind << " " << name;
  }
  EXPECT_GT(compared, 20);
}

/// What cannot change the network's output when each of the 32 groups of a norm has one channel: a
/// constant added to a channel before such a norm.
std::set<std::string> cancelled_by_norm(const Trainer& trainer) {
  std::set<std::string> names;
  for (const NamedParameter& parameter : trainer.optimizer().parameters()) {
    const std::string& name = parameter.name;
    const bool timestep = name.find("emb_layers") != name.npos || name.starts_with("time_embed");
    if (name.ends_with("in_layers.2.bias") ||
        (timestep && !trainer.settings().use_scale_shift_norm))
      names.insert(name);
    const bool last = name.starts_with("output_blocks.3.0.");  // out.0, a norm, follows
    if (last && (name.ends_with("out_layers.3.bias") || name.ends_with("skip_connection.bias"))) {
      names.insert(name);
    }
  }
  return names;
}

void expect_final(const Reference& reference, const Trainer& trainer, const Reach& reach) {
  const std::set<std::string> zero = cancelled_by_norm(trainer);
  const AdamW& optimizer = trainer.optimizer();
  const int64_t heads = trainer.settings().num_heads;
  expect_final(reference, "final", optimizer.parameters(), heads, zero, reach.parameters);
  expect_final(reference, "ema", optimizer.ema(0), heads, zero, reach.averages);
}

void expect_reference_run(const std::string& file, const Settings& settings) {
  const Reference reference(file);
  Trainer trainer(settings);
  load_start(trainer, reference);
  Reach reach;
  for (int step = 0; step < 5; ++step) {
    const StepReport report = trainer.step_on(recorded_batch(reference, step));
    reach.add_step(report.lr, 0.9);
    const double loss = reference.read(fmt::format("step{}.loss", step)).item();
    const double grad_norm = reference.read(fmt::format("step{}.grad_norm", step)).item();
    EXPECT_NEAR(report.loss, loss, 1e-4 * loss) << "step " << step;
    EXPECT_NEAR(report.grad_norm, grad_norm, 1e-3 * grad_norm) << "step " << step;
    EXPECT_EQ(report.step, step + 1);
  }
  expect_final(reference, trainer, reach);
}

TEST(TrainerReference, FiveStepsOnTheMeanSquaredError) {
  expect_reference_run("train_mse", reference_settings());
}

TEST(TrainerReference, FiveStepsOnTheHybridLossWithACosineSchedule) {
  Settings settings = reference_settings();
  settings.use_scale_shift_norm = true;
  settings.learn_sigma = true;
  settings.noise_schedule = "cosine";
  settings.rescale_timesteps = true;
  settings.rescale_learned_sigmas = true;
  expect_reference_run("train_hybrid", settings);
}

TEST(TrainerReference, SuperResolutionClassesMicrobatchesWeightsAndAnnealing) {
  const Reference reference("train_time"), start("unet_h_sr_class_time");
  Settings settings = reference_settings();
  settings.num_heads = 2;
  settings.use_scale_shift_norm = true;
  settings.conv_resample = false;
  settings.class_cond = true;
  settings.num_classes = 6;
  settings.small_size = 4;
  settings.diffusion_steps = 4000;
  settings.rescale_timesteps = true;
  settings.microbatch = 2;
  settings.lr_anneal_steps = 8;
  Trainer trainer(settings);
  load_start(trainer, start);
  Reach reach;
  for (int step = 0; step < 5; ++step) {
    const std::string prefix = fmt::format("step{}.", step);
    TrainingBatch batch = recorded_batch(reference, step);
    const Tensor weights = reference.read(prefix + "weights");
    // The original adds up the gradients of two microbatches' means:
    // twice the gradient of the whole mean.
    batch.weights = weights * 2.0;
    batch.y = reference.read(prefix + "y");
    batch.low_res = reference.read_images(prefix + "low_res");
    const TrainingLosses losses =
        accumulate_gradients(trainer.unet(), trainer.diffusion(), batch, 1);
    EXPECT_TRUE(test::close(losses.loss, reference.read(prefix + "losses"), 1e-4))
        << "step " << step;
    const StepReport report = trainer.step_on(batch);
    reach.add_step(report.lr, 0.9);
    const double grad_norm = reference.read(prefix + "grad_norm").item();
    EXPECT_NEAR(report.grad_norm, grad_norm, 1e-4 * grad_norm) << "step " << step;
    EXPECT_DOUBLE_EQ(report.lr, 1e-3 * (1 - step / 8.0));
    EXPECT_NEAR(report.loss, 2 * mean(reference.read(prefix + "losses") * weights).item(),
                1e-4 * report.loss);
  }
  expect_final(reference, trainer, reach);
}

/// A network of one level, quick enough to train many times.
Settings tiny_settings() {
  Settings settings;
  settings.image_size = 4;
  settings.num_channels = 32;
  settings.channel_mult = "1";
  settings.num_res_blocks = 1;
  settings.attention_resolutions = "";
  settings.num_heads = 1;
  settings.diffusion_steps = 100;
  settings.batch_size = 6;
  settings.lr = 1e-3;
  settings.ema_rate = "0.9,0.5";
  return settings;
}

struct Images {
  Tensor x_0, y;
};

Images images_of_step(const Settings& settings, int64_t step) {
  Generator random(99, static_cast<uint64_t>(step));
  const int64_t N = settings.batch_size, size = settings.image_size;
  return {random.uniform({N, size, size, 3}) * 2.0 - 1.0, random.integers({N}, 3)};
}

StepReport train_step(Trainer& trainer) {
  const Images images = images_of_step(trainer.settings(), trainer.step_count());
  return trainer.step(images.x_0, images.y);
}

void expect_same(const std::vector<NamedParameter>& a, const std::vector<NamedParameter>& b,
                 double rtol) {
  for (size_t i = 0; i < b.size(); ++i)
    EXPECT_TRUE(test::close(a[i].value, b[i].value, rtol)) << b[i].name;
}

void expect_same_weights(const Trainer& a, const Trainer& b, double rtol) {
  expect_same(a.optimizer().parameters(), b.optimizer().parameters(), rtol);
}

TEST(Trainer, GivesTheSameNumbersEachTimeAndOthersForAnotherSeed) {
  Settings settings = tiny_settings();
  settings.dropout = 0.3;
  Trainer first(settings), second(settings);
  settings.seed = 1;
  Trainer other(settings);
  for (int i = 0; i < 3; ++i) {
    const StepReport a = train_step(first), b = train_step(second), c = train_step(other);
    EXPECT_EQ(a.loss, b.loss);
    EXPECT_EQ(a.grad_norm, b.grad_norm);
    EXPECT_NE(a.loss, c.loss);
  }
  expect_same_weights(first, second, 0);
}

TEST(Trainer, MicrobatchesOfAnySizeGiveTheWholeBatchsGradient) {
  Settings settings = tiny_settings();
  Trainer whole(settings);
  const StepReport wanted = train_step(whole);
  for (int64_t microbatch : {1, 2, 4, 5, 6, 100}) {  // 4 and 5 leave a smaller one at the end
    settings.microbatch = microbatch;
    Trainer trainer(settings);
    const StepReport report = train_step(trainer);
    // Sums in another order, in float32.
    EXPECT_NEAR(report.loss, wanted.loss, 1e-6 * wanted.loss) << microbatch;
    EXPECT_NEAR(report.grad_norm, wanted.grad_norm, 1e-5 * wanted.grad_norm) << microbatch;
  }
}

TEST(Trainer, TellsTheLossApartByQuartileOfT) {
  const Settings settings = tiny_settings();
  Trainer trainer(settings);
  const Images images = images_of_step(settings, 0);
  TrainingBatch batch;
  batch.x_0 = images.x_0;
  batch.t = Tensor::from<int64_t>({6}, {0, 24, 25, 74, 75, 99});
  Generator random(5);
  batch.eps = random.normal(batch.x_0.shape());
  batch.weights = Tensor::from<float>({6}, {1, 2, 1, 0.5, 1, 3});
  const auto losses =
      accumulate_gradients(trainer.unet(), trainer.diffusion(), batch, 1).loss.to_vector<double>();
  const StepReport report = trainer.step_on(batch);
  EXPECT_NEAR(report.loss_quartile[0], (losses[0] + 2 * losses[1]) / 2, 1e-6);
  EXPECT_NEAR(report.loss_quartile[1], losses[2], 1e-6);
  EXPECT_NEAR(report.loss_quartile[2], 0.5 * losses[3], 1e-6);
  EXPECT_NEAR(report.loss_quartile[3], (losses[4] + 3 * losses[5]) / 2, 1e-6);
  batch = batch.rows(0, 2);
  EXPECT_TRUE(std::isnan(trainer.step_on(batch).loss_quartile[3]));
}

TEST(Trainer, LearningRateFallsInAStraightLineToZero) {
  Settings settings;
  settings.lr = 0.5;
  EXPECT_EQ(learning_rate(settings, 1000), 0.5);
  settings.lr_anneal_steps = 10;
  EXPECT_DOUBLE_EQ(learning_rate(settings, 0), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate(settings, 4), 0.3);
  EXPECT_DOUBLE_EQ(learning_rate(settings, 10), 0);
  EXPECT_DOUBLE_EQ(learning_rate(settings, 11), 0);
}

TEST(Trainer, RefusesALossThatIsNotFiniteAndChangesNothing) {
  Trainer trainer(tiny_settings()), untouched(tiny_settings());
  Images images = images_of_step(trainer.settings(), 0);
  images.x_0.values<float>()[7] = std::numeric_limits<float>::infinity();
  try {
    trainer.step(images.x_0, images.y);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("loss of step 1"));
  }
  EXPECT_EQ(trainer.step_count(), 0);
  expect_same_weights(trainer, untouched, 0);
  for (size_t rate : {0, 1}) {
    for (size_t i = 0; i < trainer.optimizer().parameters().size(); ++i) {
      EXPECT_TRUE(test::close(trainer.optimizer().ema(rate)[i].value,
                              untouched.optimizer().ema(rate)[i].value, 0));
    }
  }
  EXPECT_EQ(train_step(trainer).loss, train_step(untouched).loss);
}

// The second of three microbatches fails, when the first has left its gradients.
TEST(Trainer, LeavesNoTrainingModeAndNoGradientsBehindAStepThatThrows) {
  Settings settings = tiny_settings();
  settings.microbatch = 2;
  settings.dropout = 0.5;
  Trainer trainer(settings), untouched(settings);
  Generator random(3);
  TrainingBatch batch;
  batch.x_0 = images_of_step(settings, 0).x_0;
  batch.t = Tensor::from<int64_t>({6}, {5, 6, 7, settings.diffusion_steps, 8, 9});
  batch.eps = random.normal(batch.x_0.shape());
  batch.weights = Tensor::full({6}, 1);
  EXPECT_THROW(trainer.step_on(batch), Error);
  EXPECT_FALSE(trainer.unet().training());
  for (const NamedParameter& parameter : trainer.optimizer().parameters())
    EXPECT_FALSE(parameter.value.grad().defined()) << parameter.name;
  EXPECT_EQ(trainer.step_count(), 0);
  EXPECT_EQ(trainer.images_seen(), 0);
  expect_same_weights(trainer, untouched, 0);
  EXPECT_EQ(train_step(trainer).grad_norm, train_step(untouched).grad_norm);
  EXPECT_EQ(trainer.images_seen(), 6);
}

// Powers of two round nothing on the way there and back.
TEST(Trainer, ScaledLossesGiveTheSameStep) {
  Trainer scaled(tiny_settings()), plain(tiny_settings());
  scaled.scale_losses();
  const StepReport a = train_step(scaled), b = train_step(plain);
  EXPECT_EQ(a.loss, b.loss);
  EXPECT_EQ(a.grad_norm, b.grad_norm);
  expect_same_weights(scaled, plain, 0);
  EXPECT_DOUBLE_EQ(*scaled.lg_loss_scale(), 20.001);
  train_step(scaled);
  EXPECT_DOUBLE_EQ(*scaled.lg_loss_scale(), 20.002);
}

// The gradient of the sum of losses, 2^lg / 6, is infinite in float32 down to lg = 131.
TEST(Trainer, SkipsStepsWhoseGradientsOverflowUntilTheLossIsScaledLess) {
  Trainer trainer(tiny_settings()), untouched(tiny_settings());
  trainer.scale_losses(140);
  int64_t skipped = 0;
  while (skipped < 40 && train_step(trainer).skipped) {
    ++skipped;
    EXPECT_EQ(*trainer.lg_loss_scale(), 140.0 - static_cast<double>(skipped));
    EXPECT_EQ(trainer.step_count(), skipped);
    EXPECT_EQ(trainer.skipped_steps(), skipped);
    EXPECT_EQ(trainer.optimizer().step_count(), 0);
    expect_same_weights(trainer, untouched, 0);
    expect_same(trainer.optimizer().ema(0), untouched.optimizer().ema(0), 0);
  }
  EXPECT_GE(skipped, 10);
  EXPECT_LT(skipped, 40);
  EXPECT_DOUBLE_EQ(*trainer.lg_loss_scale(), 140.001 - static_cast<double>(skipped));
  EXPECT_EQ(trainer.step_count(), skipped + 1);
  EXPECT_EQ(trainer.optimizer().step_count(), 1);
  EXPECT_EQ(trainer.images_seen(), 6 * (skipped + 1));
  // What the next batch's gradient gives by itself, as the first step of the optimiser.
  untouched.set_step_count(skipped, skipped);
  train_step(untouched);
  expect_same_weights(trainer, untouched, 0);
}

TEST(Trainer, RefusesALossThatIsNotFiniteHoweverItIsScaled) {
  Trainer trainer(tiny_settings()), untouched(tiny_settings());
  trainer.scale_losses(1.5);
  Images images = images_of_step(trainer.settings(), 0);
  images.x_0.values<float>()[7] = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(trainer.step(images.x_0, images.y).skipped);
  EXPECT_THROW(trainer.step(images.x_0, images.y), Error);
  EXPECT_EQ(trainer.step_count(), 1);
  EXPECT_EQ(trainer.images_seen(), 6);
  expect_same_weights(trainer, untouched, 0);
}

TEST(Trainer, LearnsToDenoiseOneImage) {
  Settings settings = tiny_settings();
  settings.lr = 3e-3;
  Trainer trainer(settings);
  const Images images = images_of_step(settings, 0);
  double first = 0, last = 0;
  for (int i = 0; i < 60; ++i) {
    const double loss = trainer.step(images.x_0, images.y).loss;
    if (i < 10) first += loss / 10;
    if (i >= 50) last += loss / 10;
  }
  EXPECT_LT(last, 0.7 * first);
}

}  // namespace
}  // namespace mutilde
