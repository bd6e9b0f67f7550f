#include "nn/unet.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/gradcheck.h"
#include "nn/optimizer.h"
#include "support/reference.h"

namespace mutilde {
namespace {

using ::testing::HasSubstr;

UNetConfig tiny() {
  UNetConfig config;
  config.model_channels = 32;
  config.channel_mult = {1, 2};
  config.num_res_blocks = 1;
  config.attention_downsampling = {2};
  return config;
}

template <class F>
std::string message_of(const F& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "(nothing was thrown)";
}

// Overwrites the zeroed last layers, so that every path carries a signal.
void randomise(UNet& unet, Generator& random) {
  for (const NamedParameter& parameter : unet.named_parameters()) {
    parameter.value.copy_(affine(random.normal(parameter.value.shape()), 0.1, 0));
  }
}

TEST(UNet, HasTheParameterCountsOfTheOriginal) {
  Generator random(1);
  UNetConfig config;
  config.model_channels = 32;
  config.channel_mult = {1, 2, 2};
  config.num_res_blocks = 1;
  EXPECT_NEAR(static_cast<double>(UNet(config, random).parameter_count()), 1.24e6, 0.005e6);
  config.model_channels = 64;
  config.channel_mult = {1, 2, 2, 2};
  config.num_res_blocks = 2;
  EXPECT_NEAR(static_cast<double>(UNet(config, random).parameter_count()), 9.93e6, 0.005e6);
  config.model_channels = 128;
  config.num_res_blocks = 3;
  config.out_channels = 6;
  EXPECT_NEAR(static_cast<double>(UNet(config, random).parameter_count()), 52.5e6, 0.05e6);
}

TEST(UNet, StartsByPredictingZero) {
  Generator random(3);
  const UNet unet(tiny(), random);
  const NoGrad no_grad;
  const Tensor out =
      unet.forward(random.normal({2, 8, 8, 3}), Tensor::from<int64_t>({2}, {0, 999}));
  EXPECT_EQ(out.shape(), (Shape{2, 8, 8, 3}));
  for (float value : out.to_vector<float>()) ASSERT_EQ(value, 0.0F);
}

TEST(UNet, StartsWithUniformWeightsWithinTheBoundOfTheirFanIn) {
  Generator random(3);
  const UNet unet(tiny(), random);
  for (const NamedParameter& parameter : unet.named_parameters()) {
    if (parameter.name != "input_blocks.1.0.in_layers.2.weight") continue;
    const double bound = 1 / std::sqrt(32.0 * 9);
    const Tensor w = parameter.value.detach();
    EXPECT_LE(max(abs(w)).item(), bound);
    // Variance of a uniform distribution in +-b: b^2 / 3; 9,216 draws give it to about 1 %.
    EXPECT_NEAR(mean(square(w)).item(), bound * bound / 3, 0.05 * bound * bound / 3);
    return;
  }
  FAIL() << "no such parameter";
}

TEST(UNet, RoundTripsItsStateThroughCheckpointLayout) {
  Generator random(5);
  UNet first(tiny(), random), second(tiny(), random);
  const auto state = state_dict(first.named_parameters());
  load_state_dict(second.named_parameters(), [&](const std::string& name) {
    for (const auto& [key, value] : state) {
      if (key == name) return value;
    }
    return Tensor{};
  });
  const auto a = first.named_parameters(), b = second.named_parameters();
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].value.to_vector<float>(), b[i].value.to_vector<float>()) << a[i].name;
  }
}

TEST(UNet, LoadsNothingWhenOneParameterDoesNotFit) {
  Generator random(5);
  UNet unet(tiny(), random);
  const auto before = unet.named_parameters().front().value.to_vector<float>();
  const auto load = [&](bool missing) {
    load_state_dict(unet.named_parameters(), [&](const std::string& name) -> Tensor {
      for (const NamedParameter& parameter : unet.named_parameters()) {
        if (parameter.name != name) continue;
        if (name == "out.2.bias") return missing ? Tensor{} : Tensor::zeros({7});
        return to_checkpoint_layout(zeros_like(parameter.value), parameter.layout);
      }
      return {};
    });
  };
  EXPECT_THAT(message_of([&] { load(true); }), HasSubstr("'out.2.bias' is missing"));
  EXPECT_THAT(message_of([&] { load(false); }),
              HasSubstr("'out.2.bias' has shape [7], the model expects [3]"));
  EXPECT_EQ(unet.named_parameters().front().value.to_vector<float>(), before);
}

TEST(UNet, GradientOfAWholeSmallNetworkIsItsDerivative) {
  UNetConfig config = tiny();
  config.channel_mult = {1, 1};
  config.num_heads = 2;
  Generator random(7);
  UNet unet(config, random);
  randomise(unet, random);
  unet.to(DType::kFloat64);
  const Tensor t = Tensor::from<int64_t>({1}, {17});
  const Tensor x = random.normal({1, 4, 4, 3}, DType::kFloat64).set_requires_grad(true);
  const GradcheckReport report =
      gradcheck([&](const std::vector<Tensor>& in) { return unet.forward(in[0], t); }, {x});
  EXPECT_TRUE(report.passed) << report.message;
}

TEST(UNet, DropsOnlyInTrainingModeAndByPositionAlone) {
  UNetConfig config = tiny();
  config.dropout = 0.5;
  Generator random(9);
  UNet unet(config, random);
  randomise(unet, random);
  const NoGrad no_grad;
  const Tensor x = random.normal({1, 8, 8, 3}), t = Tensor::from<int64_t>({1}, {3});
  const auto out = [&] { return unet.forward(x, t).to_vector<float>(); };
  const auto evaluated = out();
  EXPECT_EQ(out(), evaluated);
  unet.train();
  unet.set_dropout_random({1, 2, 0});
  const auto first = out();
  EXPECT_NE(first, evaluated);
  EXPECT_NE(out(), first);  // the generator went on
  unet.set_dropout_random({1, 2, 0});
  EXPECT_EQ(out(), first);
  unet.train(false);
  EXPECT_EQ(out(), evaluated);
}

TEST(UNet, CheckpointingDropsTheSameElementsAgain) {
  UNetConfig config = tiny();
  config.dropout = 0.3;
  Generator random(9);
  UNet plain(config, random);
  randomise(plain, random);
  config.use_checkpoint = true;
  UNet checkpointed(config, random);
  const auto from = plain.named_parameters(), to = checkpointed.named_parameters();
  for (size_t i = 0; i < from.size(); ++i) to[i].value.copy_(from[i].value);
  const Tensor x = random.normal({2, 8, 8, 3}, DType::kFloat64);
  const Tensor t = Tensor::from<int64_t>({2}, {3, 500});
  const Tensor cotangent = random.normal({2, 8, 8, 3}, DType::kFloat64);
  for (UNet* unet : {&plain, &checkpointed}) {
    unet->to(DType::kFloat64);
    unet->train();
    unet->set_dropout_random({1, 2, 0});
    unet->forward(x, t).backward(cotangent);
  }
  // Equal to float64 round-off: sums are taken in another order. Other elements dropped in the
  // second run would change every gradient in its first digits.
  const auto expected = plain.named_parameters(), got = checkpointed.named_parameters();
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(test::close(got[i].value.grad(), expected[i].value.grad(), 1e-12, 1e-12))
        << expected[i].name;
  }
}

TEST(UNet, SaysWhatDoesNotFit) {
  Generator random(1);
  const UNet unet(tiny(), random);
  const Tensor t = Tensor::from<int64_t>({1}, {0});
  EXPECT_THAT(message_of([&] {
                unet.forward(Tensor::zeros({1, 9, 8, 3}), t);
              }),
              HasSubstr("multiples of 2"));
  EXPECT_THAT(message_of([&] {
                unet.forward(Tensor::zeros({1, 8, 8, 4}), t);
              }),
              HasSubstr("[1,8,8,4]"));
  EXPECT_THAT(message_of([&] {
                unet.forward(Tensor::zeros({2, 8, 8, 3}), t);
              }),
              HasSubstr("[2] expected"));
  EXPECT_THAT(message_of([&] {
                unet.forward(Tensor::zeros({1, 8, 8, 3}), t, t);
              }),
              HasSubstr("unconditional"));
  EXPECT_THAT(message_of([&] {
                unet.forward(Tensor::zeros({1, 8, 8, 3}), t, {}, Tensor::zeros({1, 4, 4, 3}));
              }),
              HasSubstr("plain model"));
  UNetConfig config = tiny();
  config.model_channels = 40;
  EXPECT_THAT(message_of([&] { UNet(config, random); }), HasSubstr("40 channels do not divide"));
  config.model_channels = 32;
  config.num_heads = 5;
  EXPECT_THAT(message_of([&] { UNet(config, random); }), HasSubstr("5 heads"));
}

TEST(AdamW, FollowsTheFormulaAndEveryAverage) {
  // One parameter, three steps, against the update written out in double.
  Tensor w = Tensor::from<double>({2}, {0.5, -2}).set_requires_grad(true);
  AdamWOptions options{.weight_decay = 0.1, .ema_rates = {0.9, 0.5}};
  AdamW optimizer({{"w", w}}, options);
  std::vector<double> p{0.5, -2}, m(2), v(2), ema0 = p, ema1 = p;
  const std::vector<std::vector<double>> gradients{{1, -3}, {0.25, 2}, {-4, 0}};
  for (int step = 1; step <= 3; ++step) {
    const auto& g = gradients[static_cast<size_t>(step - 1)];
    const double lr = 0.01 * step;
    w.set_grad(Tensor::from<double>({2}, g));
    optimizer.step(lr);
    for (size_t i = 0; i < 2; ++i) {
      m[i] = 0.9 * m[i] + 0.1 * g[i];
      v[i] = 0.999 * v[i] + 0.001 * g[i] * g[i];
      const double m_hat = m[i] / (1 - std::pow(0.9, step)),
                   v_hat = v[i] / (1 - std::pow(0.999, step));
      p[i] = p[i] * (1 - lr * 0.1) - lr * m_hat / (std::sqrt(v_hat) + 1e-8);
      ema0[i] = 0.9 * ema0[i] + 0.1 * p[i];
      ema1[i] = 0.5 * ema1[i] + 0.5 * p[i];
    }
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_NEAR(w.to_vector<double>()[i], p[i], 1e-14);
      EXPECT_NEAR(optimizer.ema(0)[0].value.to_vector<double>()[i], ema0[i], 1e-14);
      EXPECT_NEAR(optimizer.ema(1)[0].value.to_vector<double>()[i], ema1[i], 1e-14);
    }
  }
  optimizer.zero_grad();
  EXPECT_FALSE(w.grad().defined());
}

TEST(AdamW, LeavesNoOldShortCopy) {
  for (const DType type : {DType::kBFloat16, DType::kFloat16}) {
    Tensor w = Tensor::from<float>({3}, {0.5, -2, 1}).set_requires_grad(true);
    AdamW optimizer({{"w", w}}, {});
    const std::vector<double> before = w.shortened(type).to_vector<double>();
    w.set_grad(Tensor::from<float>({3}, {1, -3, 2}));
    optimizer.step(0.1);
    EXPECT_NE(w.shortened(type).to_vector<double>(), before);
    EXPECT_EQ(w.shortened(type).to_vector<double>(), w.detach().to(type).to_vector<double>());
  }
}

TEST(AdamW, WarmsItsAverageUp) {
  Tensor w = Tensor::from<double>({1}, {1}).set_requires_grad(true);
  AdamW optimizer({{"w", w}}, {.ema_rates = {0.995}, .ema_warmup = true});
  w.copy_(Tensor::from<double>({1}, {3}));
  optimizer.step(0);  // no gradient: the parameter keeps still, the average moves at rate 2 / 11
  EXPECT_NEAR(w.item(), 3, 0);
  EXPECT_NEAR(optimizer.ema(0)[0].value.item(), 2.0 / 11 * 1 + 9.0 / 11 * 3, 1e-14);
}

TEST(AdamW, SwapsTheAverageInAndOut) {
  Tensor w = Tensor::from<double>({1}, {1}).set_requires_grad(true);
  AdamW optimizer({{"w", w}}, {.ema_rates = {0.5}});
  w.copy_(Tensor::from<double>({1}, {3}));
  {
    const SwappedParameters swapped(optimizer.parameters(), optimizer.ema(0));
    EXPECT_EQ(w.item(), 1);
  }
  EXPECT_EQ(w.item(), 3);
  EXPECT_THROW(AdamW({{"w", w}}, {.ema_rates = {1.0}}), Error);

  const Tensor b = Tensor::from<double>({2}, {5, 6});
  const std::vector<NamedParameter> both = {{"w", w}, {"b", b}};
  const std::vector<NamedParameter> misfit = {{"w", Tensor::full({1}, 7, DType::kFloat64)},
                                              {"b", Tensor::full({3}, 7, DType::kFloat64)}};
  EXPECT_THROW(SwappedParameters(both, misfit), ShapeError);
  EXPECT_EQ(w.item(), 3);  // and not 7
}

}  // namespace
}  // namespace mutilde
