// # 6. The UNet, from its parts
//
// The network of a diffusion model takes a noisy image $[N, H, W, C]$ and a time $t$, and gives an
// answer of the image's shape: the noise in each pixel. For that it must see far (is this a
// sleeve?) and sharply (is it an edge?). Going down, a UNet halves the image and sees far; coming
// up, it doubles again, and at each size is handed what was there on the way down.
//
// On this page one forward pass is written out in functions of a few lines. Shapes and parameters
// of every block are printed, and at the end it must equal the library's `UNet` (`nn/unet.cpp`).
#include <cmath>
#include <map>
#include <set>

#include "core/ops/ops.h"
#include "tutorials/small_model.h"
#include "tutorials/tutorial.h"

namespace mutilde::tutorial {
namespace {

// ## What time is it?
//
// The noise to look for depends on $t$, so the network must know it. A single number from 0 to 999
// is a poor input: too large, and 500 looks like 501. So $t$ is spread over $d$ numbers, like the
// hands of many clocks, from one turn in 6 steps to one in 35,000:
//
// $$e(t) = (\cos f_0 t, \ldots, \cos f_{d/2-1} t,\; \sin f_0 t, \ldots, \sin f_{d/2-1} t), \qquad
//   f_i = 10000^{-2i/d}$$
//
// The fast hands tell neighbours apart, the slow ones early from late. And how alike two times look
// depends on their distance alone, since $\cos a \cos b + \sin a \sin b = \cos(a - b)$:
//
// $$e(t) \cdot e(t') = \sum_i \cos f_i (t - t')$$
//
// ```text
// e(10) e(20) = 10.06, e(500) e(510) = 10.06, e(10) e(510) = 2.11
// ```
//
// ![The embedding: a row for every tenth time, a column a hand](06_embedding.png)
void what_time(const Options& options) {
  const auto alike = [](double a, double b) {
    const Tensor t = Tensor::from<double>({2}, {a, b});
    const Tensor e = timestep_embedding(t, 32, DType::kFloat64);
    return sum(e.slice(0, 1) * e.slice(1, 2)).item();
  };
  fmt::print("e(10) e(20) = {:.2f}, e(500) e(510) = {:.2f}, e(10) e(510) = {:.2f}\n", alike(10, 20),
             alike(500, 510), alike(10, 510));
  const Tensor t = 10.0 * Tensor::arange(100).to(DType::kFloat64);
  const Tensor e = timestep_embedding(t, 128, DType::kFloat64).reshape({1, 100, 128, 1});
  save(options, "06_embedding.png", labelled_rows({"cosines, then sines"}, {{"t=0 to 990", e}}, 5));
}

// ## Weights by name
//
// A network is its weights and a rule. The weights have names, which are the original program's, so
// that files go both ways: `input_blocks.1.0.in_layers.2.weight` is block 1 of the way down, its
// layer 0, in the first half's list the third. Here they lie in a table that counts what is used.
class Weights {
 public:
  explicit Weights(const UNet& unet) {
    for (const NamedParameter& parameter : unet.named_parameters())
      table_[parameter.name] = parameter.value.detach();
  }
  bool has(const std::string& layer) const { return table_.count(layer + ".weight") != 0; }
  Tensor operator()(const std::string& name) {
    if (used_.insert(name).second) count_ += table_.at(name).numel();
    return table_.at(name);
  }
  /// Parameters used so far, each counted once.
  int64_t count() const { return count_; }
  /// Multiply-adds an image, of the layers that work on so many pixels.
  int64_t& work(int64_t pixels) { return work_[pixels]; }

 private:
  std::map<std::string, Tensor> table_;
  std::set<std::string> used_;
  int64_t count_ = 0;
  std::map<int64_t, int64_t> work_;
};

Tensor conv(Weights& w, const std::string& name, const Tensor& x, int64_t stride = 1) {
  const Tensor weight = w(name + ".weight");  // [C_out, K, K, C]
  const Tensor y = conv2d(x, weight, w(name + ".bias"), stride, weight.size(1) / 2);
  const int64_t pixels = y.size(1) * y.size(2);
  w.work(pixels) += weight.numel() * pixels;
  return y;
}
Tensor dense(Weights& w, const std::string& name, const Tensor& x) {  // [N, pixels, C] or [N, C]
  const Tensor weight = w(name + ".weight");
  const int64_t pixels = x.rank() == 3 ? x.size(1) : 1;
  w.work(pixels) += weight.numel() * pixels;
  return linear(x, weight, w(name + ".bias"));
}
Tensor norm(Weights& w, const std::string& name, const Tensor& x) {
  return group_norm(x, 32, w(name + ".weight"), w(name + ".bias"));
}

// ## The residual block
//
// Its main line is norm, SiLU, convolution, twice. The time comes in at the second norm: a layer of
// its own turns the embedding into a scale and a shift for each channel,
//
// $$h \leftarrow \mathrm{norm}(h) \cdot (1 + \mathrm{scale}(t)) + \mathrm{shift}(t)$$
//
// so that one network behaves like a thousand, one for each $t$, and shares what they have in
// common. What comes out is *added* to the input. The gradient of a sum reaches both parts
// undiminished, so that depth costs nothing; and since the last convolution starts at zero, a new
// block does nothing, and a new network is a short one that grows as it learns. Where the number of
// channels changes, a 1 x 1 convolution brings the input to it.
//
// Its size: two norms ($2 C$ and $2 C'$), two convolutions ($9 C C' + C'$ and $9 C'^2 + C'$), the
// layer of the time ($d_e \cdot 2 C' + 2 C'$), and where $C \ne C'$ the skip ($C C' + C'$).
Tensor res_block(Weights& w, const std::string& name, const Tensor& x, const Tensor& embedding) {
  Tensor h = conv(w, name + ".in_layers.2", silu(norm(w, name + ".in_layers.0", x)));
  const Tensor time = dense(w, name + ".emb_layers.1", embedding);
  const std::vector<Tensor> halves = split(time.reshape({x.size(0), 1, 1, time.size(1)}), 2);
  h = norm(w, name + ".out_layers.0", h) * (1.0 + halves[0]) + halves[1];
  h = conv(w, name + ".out_layers.3", silu(h));
  const std::string skip = name + ".skip_connection";
  return (w.has(skip) ? conv(w, skip, x) : x) + h;
}

int64_t res_block_size(int64_t C, int64_t C_out, int64_t d_e) {
  const int64_t skip = C == C_out ? 0 : C * C_out + C_out;
  return 2 * C + 9 * C * C_out + C_out + (d_e + 1) * 2 * C_out + 2 * C_out + 9 * C_out * C_out +
         C_out + skip;
}

// ## The attention block
//
// Where the image is small, each pixel may look at all others (tutorial 5): norm, a layer that
// makes queries, keys and values, attention by 4 heads, and a layer at the end that starts at zero.
// It too is added to its input. Size: $2 C + (3 C^2 + 3 C) + (C^2 + C)$.
Tensor attention_block(Weights& w, const std::string& name, const Tensor& x) {
  const Tensor pixels =
      norm(w, name + ".norm", x).reshape({x.size(0), x.size(1) * x.size(2), x.size(3)});
  const Tensor attended = attention(dense(w, name + ".qkv", pixels), /*heads=*/4);
  return x + dense(w, name + ".proj_out", attended).reshape(x.shape());
}

int64_t attention_block_size(int64_t C) { return 2 * C + 3 * C * C + 3 * C + C * C + C; }

// ## All of it
//
// The smallest network that has everything, two levels of one block each. (Tutorials 9 to 11 train
// a sister of it with 32 channels on both levels.) Follow the shapes: going down, each block's
// result is also put on a stack. Coming up, each block first takes the last one off and joins it to
// its input, channel beside channel. There is one more block a level on the way up than down,
// because the first convolution and each halving left a result too.
//
// ```text
// block           output         weights   made of
// time_embed      [2,128]          20736   two layers
// input_blocks.0  [2,14,14,32]       320   convolution
// input_blocks.1  [2,14,14,32]     26880   block
// input_blocks.2  [2,7,7,32]        9248   convolution of stride 2
// input_blocks.3  [2,7,7,64]       91008   block 32 to 64, attention
// middle_block    [2,7,7,64]      198016   block, attention, block
// output_blocks.0 [2,7,7,64]      152640   block 64+64 to 64, attention
// output_blocks.1 [2,14,14,64]    169024   block 64+32 to 64, attention, doubling
// output_blocks.2 [2,14,14,32]     48544   block 64+32 to 32
// output_blocks.3 [2,14,14,32]     38240   block 32+32 to 32
// out             [2,14,14,1]        353   norm, SiLU, convolution
// ```
//
// Three quarters of the weights work where the image is 7 x 7, but only half of the work is done
// there, as each is used at 49 places and not at 196. Attention over 49 pixels is cheap beside
// that; over 196 its table of shares would be 16 times as large.
Tensor unet_by_hand(Weights& w, const Tensor& x, const Tensor& t) {
  int64_t counted = 0;
  const auto say = [&](const char* name, const Tensor& h, const char* what) {
    fmt::print("{:15} {:14} {:7}   {}\n", name, fmt::format("{}", h.shape()), w.count() - counted,
               what);
    counted = w.count();
    return h;
  };
  fmt::print("block           output         weights   made of\n");
  const Tensor waves = timestep_embedding(t, 32, x.dtype());
  const Tensor e = silu(dense(w, "time_embed.2", silu(dense(w, "time_embed.0", waves))));
  say("time_embed", e, "two layers");

  std::vector<Tensor> skips;
  const auto keep = [&](const Tensor& h) { return skips.push_back(h), h; };
  Tensor h = keep(say("input_blocks.0", conv(w, "input_blocks.0.0", x), "convolution"));
  h = keep(say("input_blocks.1", res_block(w, "input_blocks.1.0", h, e), "block"));
  h = keep(say("input_blocks.2", conv(w, "input_blocks.2.0.op", h, 2), "convolution of stride 2"));
  h = attention_block(w, "input_blocks.3.1", res_block(w, "input_blocks.3.0", h, e));
  h = keep(say("input_blocks.3", h, "block 32 to 64, attention"));

  h = attention_block(w, "middle_block.1", res_block(w, "middle_block.0", h, e));
  h = say("middle_block", res_block(w, "middle_block.2", h, e), "block, attention, block");

  const auto joined = [&] {
    h = concat({h, skips.back()});
    skips.pop_back();
    return h;
  };
  h = attention_block(w, "output_blocks.0.1", res_block(w, "output_blocks.0.0", joined(), e));
  say("output_blocks.0", h, "block 64+64 to 64, attention");
  h = attention_block(w, "output_blocks.1.1", res_block(w, "output_blocks.1.0", joined(), e));
  h = conv(w, "output_blocks.1.2.conv", upsample_nearest(h, 2));
  say("output_blocks.1", h, "block 64+32 to 64, attention, doubling");
  h = say("output_blocks.2", res_block(w, "output_blocks.2.0", joined(), e), "block 64+32 to 32");
  h = say("output_blocks.3", res_block(w, "output_blocks.3.0", joined(), e), "block 32+32 to 32");
  return say("out", conv(w, "out.2", silu(norm(w, "out.0", h))), "norm, SiLU, convolution");
}

// ## Is it the library's?
//
// A new network answers 0, which proves little. So all weights are first drawn at random.
//
// ```text
// a new network's largest answer: 0
// parameters: 755009 used, the library's has 755009
// by the formulas, a block 32 to 64 and attention over 64 channels have 91008
// multiply-adds, in millions: 24.6 at 14 x 14, 24.3 at 7 x 7
// answers agree to 1e-12: yes
// ```
void compare() {
  Settings settings = small_settings();
  settings.channel_mult = "1,2";  // of 32 channels
  Generator random(1);
  const std::unique_ptr<UNet> unet = small_unet(settings, random);
  const Tensor x = random.normal({2, kSmallSize, kSmallSize, 1}, DType::kFloat64);
  const Tensor t = Tensor::from<int64_t>({2}, {3, 700});
  const NoGrad no_grad;
  const double new_answer = max(abs(unet->forward(x, t))).item();
  for (const NamedParameter& parameter : unet->named_parameters())
    parameter.value.copy_(0.1 * normal_like(parameter.value, random));
  Weights weights(*unet);
  const Tensor own = unet_by_hand(weights, x, t);
  fmt::print("a new network's largest answer: {}\n", new_answer);
  fmt::print("parameters: {} used, the library's has {}\n", weights.count(),
             unet->parameter_count());
  fmt::print("by the formulas, a block 32 to 64 and attention over 64 channels have {}\n",
             res_block_size(32, 64, 128) + attention_block_size(64));
  fmt::print("multiply-adds, in millions: {:.1f} at 14 x 14, {:.1f} at 7 x 7\n",
             weights.work(14 * 14) / 1e6, weights.work(7 * 7) / 1e6);
  fmt::print("answers agree to 1e-12: {}\n",
             max(abs(own - unet->forward(x, t))).item() < 1e-12 ? "yes" : "no");
}

}  // namespace

void tutorial_main(const Options& options) {
  what_time(options);
  compare();
}

}  // namespace mutilde::tutorial
