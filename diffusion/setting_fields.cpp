// The table of settings: each is described here, once, for JSON,
// the command line and `mutilde info`.
#include "diffusion/settings.h"

namespace mutilde {

namespace {

constexpr double kAny = 1e15;  // "no upper limit" that a double still holds exactly

std::vector<SettingField> make_fields() {
  using S = Settings;
  const auto model = SettingGroup::kModel;
  const auto diffusion = SettingGroup::kDiffusion;
  const auto training = SettingGroup::kTraining;
  const bool fixed = false, changeable = true;
  return {
      {"image_size", model, &S::image_size, fixed,
       "height and width in pixels (the larger ones for super-resolution)", 1, 4096},
      {"image_channels", model, &S::image_channels, fixed, "3: colour, 1: grey", 1, 3},
      {"num_channels", model, &S::num_channels, fixed,
       "channels of the first level, a multiple of 32", 32, 8192},
      {"channel_mult", model, &S::channel_mult, fixed,
       "channels of each level, as multiples, as in 1,2,2,2; empty: by image size"},
      {"num_res_blocks", model, &S::num_res_blocks, fixed, "residual blocks a level", 1, 64},
      {"attention_resolutions", model, &S::attention_resolutions, fixed,
       "attention where the image has this many pixels a side"},
      {"num_heads", model, &S::num_heads, fixed, "attention heads", 1, 1024},
      {"num_heads_upsample", model, &S::num_heads_upsample, fixed,
       "attention heads on the way up; -1: as num_heads", -1, 1024},
      {"use_scale_shift_norm", model, &S::use_scale_shift_norm, fixed,
       "the timestep scales and shifts each norm, instead of being added"},
      {"conv_resample", model, &S::conv_resample, fixed,
       "learned down- and upsampling, instead of pooling and copying"},
      {"learn_sigma", model, &S::learn_sigma, fixed, "learn the variance (eq. 15)"},
      {"class_cond", model, &S::class_cond, fixed, "condition on the class"},
      {"num_classes", model, &S::num_classes, fixed,
       "number of classes; 0: as many as the data has", 0, 1e6},
      {"small_size", model, &S::small_size, fixed,
       "super-resolution: size of the image to start from; 0: none", 0, 4096},
      {"dropout", model, &S::dropout, changeable, "dropout probability", 0, 0.999},
      {"use_checkpoint", model, &S::use_checkpoint, changeable,
       "gradient checkpointing: less memory, a third more time"},

      {"diffusion_steps", diffusion, &S::diffusion_steps, fixed, "steps of the whole process", 1,
       1e6},
      {"noise_schedule",
       diffusion,
       &S::noise_schedule,
       fixed,
       "how beta grows (eq. 17 is the cosine)",
       0,
       0,
       {"linear", "cosine"}},
      {"timestep_respacing", diffusion, &S::timestep_respacing, fixed,
       "keep some steps only: 250, ddim50, 10,15,20 (eq. 19); empty: all"},
      {"use_kl", diffusion, &S::use_kl, fixed, "train on the variational bound (eq. 4)"},
      {"predict_xstart", diffusion, &S::predict_xstart, fixed,
       "the network predicts x_0 instead of the noise"},
      {"sigma_small", diffusion, &S::sigma_small, fixed,
       "sample with the posterior's variance (eq. 10) instead of beta"},
      {"rescale_timesteps", diffusion, &S::rescale_timesteps, fixed,
       "the network sees timesteps scaled to 0 .. 1000"},
      {"rescale_learned_sigmas", diffusion, &S::rescale_learned_sigmas, fixed,
       "weigh the bound's term by 1/1000 of the steps (eq. 16)"},

      {"data", training, &S::data, changeable,
       "a folder of images, a CIFAR-10 folder, an IDX file, or fashion-mnist"},
      {"steps", training, &S::steps, changeable,
       "train until this step; 0: until interrupted, or until lr_anneal_steps", 0, kAny},
      {"batch_size", training, &S::batch_size, changeable, "images a step", 1, 1e6},
      {"microbatch", training, &S::microbatch, changeable,
       "images at a time, to save memory; -1: the whole batch", -1, 1e6},
      {"lr", training, &S::lr, changeable, "learning rate", 0, 1e3},
      {"lr_anneal_steps", training, &S::lr_anneal_steps, changeable,
       "learning rate falls to 0 in this many steps; 0: stays", 0, kAny},
      {"weight_decay", training, &S::weight_decay, changeable, "weight decay of AdamW", 0, 1e3},
      {"ema_rate", training, &S::ema_rate, fixed,
       "averages of the weights to keep, as in 0.9999,0.99; samples use the first"},
      {"ema_warmup", training, &S::ema_warmup, changeable, "average faster in the first steps"},
      {"schedule_sampler",
       training,
       &S::schedule_sampler,
       fixed,
       "how timesteps are drawn (eq. 18)",
       0,
       0,
       {"uniform", "loss-second-moment"}},
      {"random_flip", training, &S::random_flip, changeable, "mirror every other image, at random"},
      {"seed", training, &S::seed, changeable, "of all random numbers", 0, kAny},
  };
}

}  // namespace

const char* name_of(SettingGroup group) {
  switch (group) {
    case SettingGroup::kModel:
      return "model";
    case SettingGroup::kDiffusion:
      return "diffusion";
    case SettingGroup::kTraining:
      return "training";
  }
  return "";
}

const std::vector<SettingField>& setting_fields() {
  static const std::vector<SettingField> fields = make_fields();
  return fields;
}

std::string setting_text(const Settings& settings, const SettingField& field) {
  return std::visit(
      [&](auto member) -> std::string {
        const auto& value = settings.*member;
        if constexpr (std::is_same_v<decltype(member), bool Settings::*>)
          return value ? "True" : "False";
        return fmt::format("{}", value);
      },
      field.member);
}

void copy_setting(const Settings& from, Settings& to, const SettingField& field) {
  std::visit([&](auto member) { to.*member = from.*member; }, field.member);
}

}  // namespace mutilde
